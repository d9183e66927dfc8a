use super::*;
use proptest::prelude::*;

const OURS: &str = "/opt/coracle/overlayfs-fuse";

fn edit(file: File, before: Option<&str>) -> Edit {
    let after = file.edited(before.unwrap_or_default(), OURS).unwrap();
    Edit { before: before.map(str::to_owned), after }
}

#[test]
fn the_variables_of_a_path_are_put_in() {
    let of = |path: &str| {
        expanded(path, |name| match name {
            "HOME" => Some("/home/me".to_owned()),
            "UID" => Some("7".to_owned()),
            _ => None,
        })
    };
    for (path, then) in [
        ("/x", "/x"),
        ("$HOME/store", "/home/me/store"),
        ("/big/${UID}s/$UID", "/big/7s/7"),
        ("$HOME$UID-$NONE-", "/home/me7--"),
        ("/cost$", "/cost"),
        ("/open${UID", "/open{UID"),
    ] {
        assert_eq!(of(path), then, "{path}");
    }
}

#[test]
fn a_new_file_has_what_is_needed_and_nothing_else() {
    assert_eq!(
        File::Containers.edited("", "/bin/netstack").unwrap(),
        "[engine]\nnetwork_cmd_path = \"/bin/netstack\"\n"
    );
    assert_eq!(
        File::Storage.edited("", OURS).unwrap(),
        format!(
            "[storage]\ndriver = \"overlay\"\n\n[storage.options.overlay]\nmount_program = \"{OURS}\"\n"
        )
    );
}

#[test]
fn what_is_there_stays_comments_included() {
    let before = "# mine\n[storage] # the store\n  driver = 'overlay'   # fast\ngraphroot = \"/x\"\n\
                  [storage.options]\nsize = \"\"\n\n[storage.options.overlay]\n# was fuse-overlayfs\n\
                  mount_program = \"/usr/bin/fuse-overlayfs\" # slow\nmountopt = \"nodev\"\n# end\n";
    let after = File::Storage.edited(before, OURS).unwrap();
    assert_eq!(after, before.replace("\"/usr/bin/fuse-overlayfs\"", &format!("\"{OURS}\"")));
    assert_eq!(File::Storage.edited(&after, OURS).unwrap(), after, "twice is once");
}

#[test]
fn what_would_lose_data_or_is_not_understood_is_refused() {
    let storage = |text: &str| File::Storage.edited(text, OURS).unwrap_err();
    assert_eq!(storage("[storage]\ndriver = \"vfs\"\n"), SetupError::OtherDriver("vfs".into()));
    assert!(matches!(storage("[storage"), SetupError::Syntax(_)));
    assert!(!storage("[storage\nx = 1").to_string().contains('\n'), "one line");
    for text in ["storage = 1\n", "[storage]\noptions = []\n", "[storage]\ndriver = 3\n"] {
        assert!(matches!(storage(text), SetupError::Shape { .. }), "{text}");
    }
    let engine = File::Containers.edited("[engine]\nnetwork_cmd_path = [1]\n", OURS).unwrap_err();
    assert!(engine.to_string().contains("'engine.network_cmd_path'"), "{engine}");
}

#[test]
fn an_untouched_edit_is_undone_to_the_byte() {
    for before in [None, Some(""), Some("# only a comment"), Some("[engine]\r\nx = 1\r\n")] {
        for file in [File::Containers, File::Storage] {
            let edit = edit(file, before);
            assert_eq!(edit.undone(file, &edit.after).unwrap().as_deref(), before);
        }
    }
}

#[test]
fn what_the_owner_has_changed_since_is_kept() {
    let made = edit(File::Storage, None);
    let now = made.after.replace("[storage]\n", "[storage]\nrunroot = \"/r\"\n");
    let undone = made.undone(File::Storage, &now).unwrap().unwrap();
    assert_eq!(undone, "[storage]\nrunroot = \"/r\"\n");

    let was = "[storage.options.overlay]\nmount_program = \"/usr/bin/fuse-overlayfs\"\n";
    let made = edit(File::Storage, Some(was));
    let now = format!("{}mountopt = \"nodev\"\n", made.after);
    let undone = made.undone(File::Storage, &now).unwrap().unwrap();
    assert!(undone.contains("/usr/bin/fuse-overlayfs") && undone.contains("nodev"), "{undone}");
    assert!(!undone.contains("driver"), "{undone}");

    // Our key was set to something else: theirs.
    let now = made.after.replace(OURS, "/mine");
    assert!(made.undone(File::Storage, &now).unwrap().unwrap().contains("/mine"));
}

#[test]
fn stores_of_other_drivers_are_seen() {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    assert_eq!(other_store(&[], None), None);
    assert_eq!(other_store(&names(&["overlay-layers", "vfs-layers"]), None), None);
    assert_eq!(other_store(&names(&["vfs", "vfs-layers"]), None).as_deref(), Some("vfs"));
    assert_eq!(other_store(&[], Some("vfs")).as_deref(), Some("vfs"));
    assert_eq!(other_store(&names(&["overlay-layers"]), Some("zfs")).as_deref(), Some("zfs"));
    assert_eq!(other_store(&names(&["vfs-layers"]), Some("overlay")), None);
}

#[test]
fn differences_are_shown_by_line() {
    assert_eq!(line_diff("a\nb\nc\nd\n", "a\nb\nx\nd\n", 1), " b\n-c\n+x\n d\n");
    assert_eq!(line_diff("", "a\n", 3), "+a\n");
    assert_eq!(line_diff("a\n", "a\n", 3), "");
}

proptest! {
    /// No text makes it panic, and what is edited can be taken back.
    #[test]
    fn any_text(text in "(\\[(storage|engine|storage.options.overlay)\\]|[a-z]+ ?= ?(1|\"[a-z]*\"|\\{\\})|# ?x|[\\[\\]\"=.]{0,3}|\n){0,12}") {
        for file in [File::Containers, File::Storage] {
            if let Ok(after) = file.edited(&text, OURS) {
                let edit = Edit { before: Some(text.clone()), after: after.clone() };
                prop_assert_eq!(edit.undone(file, &after).unwrap(), Some(text.clone()));
                prop_assert_eq!(file.edited(&after, OURS).unwrap(), after.clone());
                let more = format!("{after}\n# more\n");
                prop_assert!(edit.undone(file, &more).is_ok());
            }
        }
    }
}
