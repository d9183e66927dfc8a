use proptest::prelude::*;

use super::{bolt, sqlite};

/// Made by sqlite3 with Podman 5's tables, in pages of 512 bytes: so the table of tables
/// has several of them, and the row goes on in others.
const SQLITE: &[u8] = include_bytes!("podman5.sqlite");
const PAGE: usize = 1024;

/// A page of bbolt: its kind, and what its elements are: flags and page (of a branch), key,
/// value (of a leaf).
fn page(kind: u16, elements: &[(u64, &[u8], &[u8])]) -> Vec<u8> {
    let mut page = vec![0; 16 * (1 + elements.len())];
    page[8..10].copy_from_slice(&kind.to_le_bytes());
    page[10..12].copy_from_slice(&u16::try_from(elements.len()).unwrap().to_le_bytes());
    for (at, (number, key, value)) in elements.iter().enumerate() {
        let element = 16 * (at + 1);
        let word = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
        let (place, size) = (word(page.len() - element), word(key.len()));
        let fields = if kind == 1 {
            [&place[..], &size, &number.to_le_bytes()].concat()
        } else {
            [&word(usize::try_from(*number).unwrap())[..], &place, &size, &word(value.len())]
                .concat()
        };
        page[element..element + 16].copy_from_slice(&fields);
        page.extend_from_slice(key);
        page.extend_from_slice(value);
    }
    page
}

fn description(transaction: u64, root: u64) -> Vec<u8> {
    let mut all = [0xED0C_DAED_u32, 2, u32::try_from(PAGE).unwrap(), 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect::<Vec<_>>();
    for word in [root, 0, 2, 9, transaction] {
        all.extend_from_slice(&word.to_le_bytes());
    }
    let sum = all.iter().fold(0xCBF2_9CE4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3)
    });
    all.extend_from_slice(&sum.to_le_bytes());
    [page(4, &[]), all].concat()
}

/// A file of these pages.
fn file(pages: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for page in pages {
        file.extend_from_slice(page);
        file.resize(file.len().next_multiple_of(PAGE), 0);
    }
    file
}

/// As Podman 4 leaves it: what the store is is in the bucket itself.
fn small(driver: &str) -> Vec<u8> {
    let config = page(2, &[(0, b"graph-driver-name", driver.as_bytes()), (0, b"os", b"linux")]);
    let bucket = [vec![0; 16], config].concat();
    let root = page(2, &[(1, b"name-registry", &[0; 16]), (1, b"runtime-config", &bucket)]);
    file(&[description(4, 2), description(5, 3), page(2, &[]), root])
}

#[test]
fn the_driver_in_bolt_is_found() {
    assert_eq!(bolt(&small("vfs")).unwrap().as_deref(), Some("vfs"));
    assert_eq!(bolt(&small("overlay")).unwrap().as_deref(), Some("overlay"));
    assert_eq!(bolt(b"").unwrap(), None);
}

#[test]
fn bolt_with_branches_and_buckets_of_their_own_is_followed() {
    let bucket = [6_u64.to_le_bytes(), [0; 8]].concat();
    let file = file(&[
        description(9, 2),
        description(8, 3),
        page(1, &[(4, b"a", b""), (5, b"pod", b"")]),
        page(2, &[]),
        page(2, &[(1, b"all", &[0; 16])]),
        page(2, &[(1, b"pod", &[0; 16]), (1, b"runtime-config", &bucket)]),
        page(2, &[(0, b"graph-driver-name", b"zfs")]),
    ]);
    assert_eq!(bolt(&file).unwrap().as_deref(), Some("zfs"));
}

#[test]
fn the_newer_whole_description_of_bolt_counts() {
    // The newer one is torn: the older one's page has nothing.
    let mut torn = small("vfs");
    torn[PAGE + 20] ^= 1;
    assert_eq!(bolt(&torn).unwrap(), None);
    torn[20] ^= 1;
    let why = bolt(&torn).unwrap_err().to_string();
    assert!(why.contains("neither description"), "{why}");
    assert!(bolt(&[0; 4096]).is_err());
}

#[test]
fn the_driver_in_sqlite_is_found() {
    assert_eq!(sqlite(SQLITE).unwrap().as_deref(), Some("vfs"));
    assert_eq!(sqlite(b"").unwrap(), None);
    assert!(sqlite(&SQLITE[..SQLITE.len() / 2]).is_err(), "half of it");
    assert!(sqlite(b"SQLite format 2\0").is_err());
}

#[test]
fn columns_are_told_from_constraints() {
    let sql = "CREATE TABLE x(ID INTEGER CHECK (a, b), \"SchemaVersion\" INT,\n  GraphDriver TEXT)";
    let all: Vec<_> = super::columns(sql).collect();
    assert_eq!(all, ["ID", "SchemaVersion", "GraphDriver"]);
}

proptest! {
    /// Whatever is changed in a file: an answer or an error, and no end is missed.
    #[test]
    fn damage_is_survived(changes: Vec<(usize, u8)>, cut: usize) {
        for (whole, read) in [
            (small("vfs"), bolt as fn(&[u8]) -> super::Result<Option<String>>),
            (SQLITE.to_owned(), sqlite),
        ] {
            let mut file = whole.clone();
            for (at, byte) in &changes {
                let at = at % file.len();
                file[at] = *byte;
            }
            read(&file).ok();
            file.truncate(cut % file.len());
            read(&file).ok();
        }
    }
}
