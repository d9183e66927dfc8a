//! The tree the file systems are measured on: paths, sizes and bytes. Pure.
//!
//! It looks like a Debian root: packages, each with its files below `usr/share/doc`,
//! `usr/lib`, `usr/include`, `usr/share/man`, `usr/share/locale`, `var/lib/dpkg/info`
//! and so on, so that a directory such as `usr/share/doc` is merged of all layers.
//! The packages are dealt out to the layers, the first to the lowest; some files
//! have an older version in the layer below theirs. There are no whiteouts: not
//! every candidate reads the kernel's.
//!
//! The same arguments give the same tree on every machine.

use std::collections::BTreeMap;

/// One object of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative, without a slash at either end.
    pub(crate) path: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// Number of the package that brings it; of a directory, the first that does.
    pub(crate) package: usize,
}

/// What an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Mode 0755.
    Directory,
    /// Mode 0644, or 0755 in directories of programs.
    File(Content),
    /// With its target.
    Link(String),
}

/// The bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Content {
    /// How many.
    pub(crate) size: u64,
    /// Which: see [`Content::bytes`].
    pub(crate) seed: u64,
}

/// A whole tree, sorted by path: what contains comes before what is contained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    /// The objects.
    pub(crate) entries: Vec<Entry>,
    packages: usize,
}

/// SplitMix64 (Steele, Lea, Flood 2014): the output for the state `state`.
pub(crate) fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    /// From 0 to below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % end
    }
}

impl Content {
    /// The bytes themselves.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.size).expect("files fit into memory")];
        fill(&mut bytes, self.seed);
        bytes
    }

    /// What the file was before an upgrade.
    fn older(self) -> Self {
        Self { size: self.size / 2 + 7, seed: !self.seed }
    }

    /// Modification time: seconds since 1970, nanoseconds.
    pub(crate) fn time(self) -> (i64, i64) {
        let some = mix(self.seed ^ 1);
        (EPOCH + (some % 100_000_000) as i64, (some >> 32) as i64 % 1_000_000_000)
    }
}

/// Modification time of every directory, seconds since 1970.
pub(crate) const EPOCH: i64 = 1_600_000_000;

/// Fills a buffer with the bytes of a seed.
pub(crate) fn fill(bytes: &mut [u8], seed: u64) {
    for (at, word) in bytes.chunks_mut(8).enumerate() {
        word.copy_from_slice(&mix(seed ^ (at as u64) << 1).to_le_bytes()[..word.len()]);
    }
}

/// Sizes as in a Debian root: of a thousand files so many have from .. to bytes.
const SIZES: [(u64, u64, u64); 8] = [
    (185, 10, 500),
    (300, 500, 2_000),
    (300, 2_000, 8_000),
    (150, 8_000, 32_000),
    (55, 32_000, 120_000),
    (7, 120_000, 600_000),
    (2, 600_000, 1_000_000),
    (1, 1_000_000, 1_800_000),
];

const WORDS: [&str; 40] = [
    "acl", "apt", "archive", "attr", "audit", "blkid", "boost", "bzip", "cairo", "config", "crypt",
    "curl", "data", "db", "dbus", "edit", "elf", "event", "ffi", "font", "gcrypt", "glib", "gmp",
    "graph", "harfbuzz", "icu", "idn", "image", "json", "kmod", "ldap", "mount", "ncurses",
    "nettle", "pango", "pcre", "perl", "proxy", "readline", "systemd",
];

const LANGUAGES: [&str; 16] = [
    "ar", "cs", "da", "de", "el", "es", "fi", "fr", "hu", "it", "ja", "nl", "pl", "pt_BR", "ru",
    "zh_CN",
];

impl Tree {
    /// A tree of exactly `count` objects, directories included.
    pub(crate) fn new(count: usize) -> Self {
        let mut maker = Maker { entries: BTreeMap::new(), count, package: 0 };
        while maker.entries.len() < count {
            maker.package();
            maker.package += 1;
        }
        let packages = maker.package;
        let entries = maker
            .entries
            .into_iter()
            .map(|(path, (kind, package))| Entry { path, kind, package })
            .collect();
        Self { entries, packages }
    }

    /// The tree dealt out to layers, lowest first. Each has the directories of its
    /// files; merged they are the tree.
    pub(crate) fn layers(&self, layers: usize) -> Vec<Vec<Entry>> {
        let mut dealt: Vec<BTreeMap<&str, Entry>> = vec![BTreeMap::new(); layers];
        let directories: BTreeMap<&str, &Entry> = self
            .entries
            .iter()
            .filter(|entry| entry.kind == Kind::Directory)
            .map(|entry| (entry.path.as_str(), entry))
            .collect();
        for entry in self.entries.iter().filter(|entry| entry.kind != Kind::Directory) {
            let layer = entry.package * layers / self.packages;
            let mut versions = vec![(layer, entry.clone())];
            if let Kind::File(content) = entry.kind
                && layer > 0
                && content.seed % 32 == 0
            {
                let older = Entry { kind: Kind::File(content.older()), ..entry.clone() };
                versions.push((layer - 1, older));
            }
            for (layer, version) in versions {
                for (at, _) in entry.path.match_indices('/') {
                    let (path, above) = directories
                        .get_key_value(&entry.path[..at])
                        .expect("what contains a file is in the tree");
                    dealt[layer].entry(path).or_insert_with(|| (*above).clone());
                }
                dealt[layer].insert(&entry.path, version);
            }
        }
        dealt.into_iter().map(|layer| layer.into_values().collect()).collect()
    }

    /// Some files of at most 64 KiB, at most `count`, spread over the tree.
    pub(crate) fn small_files(&self, count: usize) -> Vec<(&str, Content)> {
        let small: Vec<_> = self
            .entries
            .iter()
            .filter_map(|entry| match entry.kind {
                Kind::File(content) if content.size <= 64 << 10 => {
                    Some((entry.path.as_str(), content))
                }
                _ => None,
            })
            .collect();
        let count = count.min(small.len());
        (0..count).map(|at| small[at * small.len() / count]).collect()
    }

    /// The entries below a directory, and those that lead to it.
    pub(crate) fn below(&self, dir: &str) -> Vec<Entry> {
        let inside = |path: &str| {
            path.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                || dir.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
        };
        self.entries.iter().filter(|entry| inside(&entry.path)).cloned().collect()
    }

    /// Paths that together contain the tree, in as many groups of about equal size.
    /// One group is the top level; in more, directories of the first two levels
    /// are not named themselves.
    pub(crate) fn groups(&self, groups: usize) -> Vec<Vec<&str>> {
        let depth = if groups == 1 { 1 } else { 3 };
        let mut units: BTreeMap<&str, usize> = BTreeMap::new();
        for entry in &self.entries {
            let end = entry.path.match_indices('/').nth(depth - 1).map(|(at, _)| at);
            let unit = &entry.path[..end.unwrap_or(entry.path.len())];
            let is_unit = end.is_some()
                || entry.kind != Kind::Directory
                || entry.path.matches('/').count() + 1 == depth;
            if is_unit {
                *units.entry(unit).or_default() += 1;
            }
        }
        let mut units: Vec<_> = units.into_iter().collect();
        // The largest first, each to the group that has least.
        units.sort_by_key(|&(path, size)| (std::cmp::Reverse(size), path));
        let mut dealt: Vec<(usize, Vec<&str>)> = vec![(0, Vec::new()); groups];
        for (path, size) in units {
            let least = dealt.iter_mut().min_by_key(|(sum, _)| *sum).expect("a group");
            least.0 += size;
            least.1.push(path);
        }
        dealt.into_iter().map(|(_, paths)| paths).collect()
    }

    /// Names that are not there, in directories that are: what a compiler or a
    /// loader asks for along its search path.
    pub(crate) fn missing_names(&self, count: usize) -> Vec<String> {
        let directories: Vec<_> =
            self.entries.iter().filter(|entry| entry.kind == Kind::Directory).collect();
        (0..count)
            .map(|at| {
                let above = directories[at * directories.len() / count];
                format!("{}/missing-{at}.h", above.path)
            })
            .collect()
    }
}

struct Maker {
    entries: BTreeMap<String, (Kind, usize)>,
    count: usize,
    package: usize,
}

impl Maker {
    /// Adds an object and the directories it is in, unless that would be too many
    /// or it is there already.
    fn add(&mut self, path: String, kind: Kind) {
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        let new: Vec<String> =
            above.filter(|dir| !self.entries.contains_key(*dir)).map(str::to_owned).collect();
        if self.entries.contains_key(&path) || self.entries.len() + new.len() >= self.count {
            return;
        }
        for dir in new {
            self.entries.insert(dir, (Kind::Directory, self.package));
        }
        self.entries.insert(path, (kind, self.package));
    }

    fn file(&mut self, path: String) {
        let seed = path.bytes().fold(0, |hash: u64, byte| mix(hash ^ u64::from(byte)));
        let mut random = Random(seed);
        let mut at = random.below(1000);
        let class = SIZES.iter().find(|(share, ..)| {
            let here = at < *share;
            at = at.saturating_sub(*share);
            here
        });
        let (_, from, to) = *class.expect("the shares are a thousand");
        let size = from + random.below(to - from);
        self.add(path, Kind::File(Content { size, seed }));
    }

    fn files(&mut self, count: u64, path: impl Fn(u64) -> String) {
        for number in 0..count {
            self.file(path(number));
        }
    }

    /// One package, of one of the usual sorts.
    fn package(&mut self) {
        let number = self.package as u64;
        let mut random = Random(number << 20);
        let word = WORDS[random.below(WORDS.len() as u64) as usize];
        let name = format!("lib{word}{}", number % 1000);
        self.file(format!("var/lib/dpkg/info/{name}-{number}.list"));
        self.file(format!("var/lib/dpkg/info/{name}-{number}.md5sums"));
        let doc = format!("usr/share/doc/{name}-{number}");
        self.file(format!("{doc}/changelog.Debian.gz"));
        self.file(format!("{doc}/copyright"));
        match random.below(10) {
            0..3 => {
                let lib = "usr/lib/x86_64-linux-gnu";
                self.file(format!("{lib}/{name}.so.{number}.0.1"));
                let link = format!("{lib}/{name}.so.{number}");
                self.add(link, Kind::Link(format!("{name}.so.{number}.0.1")));
                self.files(random.below(4), |n| format!("{lib}/{word}/modules/{name}-{n}.so"));
            }
            3..5 => {
                self.files(4 + random.below(50), |n| format!("usr/include/{name}/{word}_{n}.h"));
                self.file(format!("usr/lib/x86_64-linux-gnu/pkgconfig/{name}-{number}.pc"));
            }
            5..7 => {
                let lib = format!("usr/lib/python3/dist-packages/{word}_{number}");
                self.files(3 + random.below(25), |n| format!("{lib}/{}/module_{n}.py", n % 3));
                self.files(3 + random.below(25), |n| {
                    format!("{lib}/{}/__pycache__/module_{n}.cpython-311.pyc", n % 3)
                });
            }
            7 => self.files(20 + random.below(90), |n| format!("{doc}/html/{word}_{n}.html")),
            8 => {
                self.file(format!("usr/bin/{word}-{number}"));
                self.file(format!("etc/{word}/{name}-{number}.conf"));
                self.files(random.below(40), |n| {
                    format!("usr/share/{name}-{number}/icons/{}x{0}/{word}-{n}.png", 16 << (n % 4))
                });
            }
            _ => {
                self.files(2 + random.below(14), |n| {
                    let language = LANGUAGES[n as usize];
                    format!("usr/share/locale/{language}/LC_MESSAGES/{name}-{number}.mo")
                });
            }
        }
        self.files(random.below(6), |n| {
            format!("usr/share/man/man{}/{name}-{number}_{n}.{0}.gz", 1 + n % 3)
        });
        if random.below(4) == 0 {
            let path = format!("etc/alternatives/{word}-{number}");
            self.add(path, Kind::Link(format!("/usr/bin/{word}-{number}")));
        }
    }
}

#[cfg(test)]
mod unit {
    use std::collections::BTreeSet;

    use super::*;

    fn bytes(tree: &Tree) -> u64 {
        let sizes = tree.entries.iter().map(|entry| match entry.kind {
            Kind::File(content) => content.size,
            Kind::Directory | Kind::Link(_) => 0,
        });
        sizes.sum()
    }

    #[test]
    fn the_tree_is_the_same_everywhere() {
        let tree = Tree::new(3000);
        assert_eq!(tree, Tree::new(3000));
        let names = tree.entries.iter().fold(0, |hash, entry| {
            entry.path.bytes().fold(hash, |hash: u64, byte| mix(hash ^ u64::from(byte)))
        });
        // Changes only with the generator: results before and after such a change
        // are not comparable.
        assert_eq!((names, bytes(&tree)), (NAMES_OF_3000, BYTES_OF_3000));
    }

    const NAMES_OF_3000: u64 = 4_717_294_792_229_738_193;
    const BYTES_OF_3000: u64 = 36_050_806;

    #[test]
    fn the_full_tree_is_as_large_as_promised() {
        let tree = Tree::new(60_000);
        assert_eq!(tree.entries.len(), 60_000);
        let mib = bytes(&tree) >> 20;
        assert!((650..900).contains(&mib), "{mib} MiB");
        let docs = tree.below("usr/share/doc").len();
        assert!((8_000..25_000).contains(&docs), "{docs} below usr/share/doc");
    }

    #[test]
    fn what_contains_comes_first_and_once() {
        let tree = Tree::new(5000);
        let mut seen = BTreeSet::new();
        for entry in &tree.entries {
            if let Some((above, name)) = entry.path.rsplit_once('/') {
                assert!(seen.contains(above), "{above}");
                assert!(!name.is_empty() && name.len() < 256);
            }
            assert!(seen.insert(entry.path.as_str()), "{} twice", entry.path);
        }
    }

    #[test]
    fn layers_merge_to_the_tree() {
        let tree = Tree::new(8000);
        for count in [1, 6, 100] {
            let layers = tree.layers(count);
            let mut merged = BTreeMap::new();
            let mut objects = 0;
            for layer in &layers {
                assert!(layer.iter().any(|entry| entry.kind != Kind::Directory), "{count}");
                objects += layer.len();
                merged.extend(layer.iter().map(|entry| (entry.path.clone(), entry.clone())));
            }
            assert!(merged.into_values().eq(tree.entries.iter().cloned()), "{count} layers");
            assert_eq!(objects > tree.entries.len(), count > 1, "directories are shared");
        }
    }

    #[test]
    fn groups_contain_all_and_are_about_equal() {
        let tree = Tree::new(20_000);
        for count in [1, 4] {
            let groups = tree.groups(count);
            let inside = |path: &str, unit: &str| {
                path.strip_prefix(unit).is_some_and(|r| r.is_empty() || r.starts_with('/'))
            };
            let sizes: Vec<usize> = groups
                .iter()
                .map(|group| {
                    let group: BTreeSet<&str> = group.iter().copied().collect();
                    let of = |path: &str| {
                        path.match_indices('/')
                            .map(|(at, _)| &path[..at])
                            .chain([path])
                            .any(|above| group.contains(above) && inside(path, above))
                    };
                    tree.entries.iter().filter(|entry| of(&entry.path)).count()
                })
                .collect();
            let all: usize = sizes.iter().sum();
            assert!(all <= 20_000 && all > 19_950, "{count}: {all}");
            assert!(sizes.iter().max() <= sizes.iter().min().map(|least| least * 2).as_ref());
        }
    }

    #[test]
    fn small_files_and_missing_names() {
        let tree = Tree::new(6000);
        let files = tree.small_files(3000);
        assert_eq!(files.len(), 3000);
        let paths: BTreeSet<_> = tree.entries.iter().map(|entry| entry.path.as_str()).collect();
        assert!(
            files
                .iter()
                .all(|(path, content)| { paths.contains(path) && content.size <= 64 << 10 })
        );
        let missing = tree.missing_names(4000);
        assert_eq!(missing.iter().collect::<BTreeSet<_>>().len(), 4000);
        assert!(missing.iter().all(|name| !paths.contains(name.as_str())));
    }

    #[test]
    fn contents_differ_and_repeat() {
        let content = Content { size: 21, seed: 5 };
        assert_eq!(content.bytes().len(), 21);
        assert_eq!(content.bytes(), content.bytes());
        assert_ne!(content.bytes(), Content { size: 21, seed: 6 }.bytes());
        assert_ne!(content.older(), content);
    }
}
