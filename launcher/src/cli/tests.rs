use super::*;
use proptest::prelude::*;

fn refused(args: &[&str]) -> String {
    match read([&["coracle"], args].concat().into_iter().map(OsString::from)) {
        Err(Unread::Wrong(why)) => why,
        other => panic!("{args:?} gave {other:?}"),
    }
}

#[test]
fn the_definition_is_sound() {
    command().debug_assert();
}

#[test]
fn what_makes_no_sense_is_told_in_one_line() {
    for (args, part) in [
        (&[][..], "which command"),
        (&["fly"], "'fly'"),
        (&["run", "--nonsense"], "'--nonsense'"),
        (&["run", "--nam", "x"], "--name"),
        (&["run", "--nam", "x"], "(see 'coracle run --help')"),
        (&["run", "--name", "a/b"], "'a/b' is not a container name"),
        (&["run", "-p", "x"], "'x' in 'x' is no port"),
        (&["exec"], "<CONTAINER>"),
        (&["exec", "x"], "<COMMAND>"),
        (&["stop"], "<CONTAINER>"),
        (&["stop", "-t", "soon", "x"], "'soon'"),
        (&["kill", "-s", "NOPE", "x"], "'NOPE' is no signal"),
        (&["ps", "--format", "xml"], "'xml'"),
    ] {
        let why = refused(args);
        assert!(why.contains(part), "{args:?}: {why}");
        assert!(!why.contains('\n') && !why.contains("error:"), "{args:?}: {why}");
    }
}

#[test]
fn help_is_there_for_every_command_and_option() {
    for sub in command().get_subcommands() {
        assert!(sub.get_about().is_some(), "{}", sub.get_name());
        for arg in sub.get_arguments() {
            assert!(arg.get_help().is_some(), "{} {}", sub.get_name(), arg.get_id());
        }
        let asked = read(["coracle", sub.get_name(), "--help"].map(OsString::from));
        assert!(matches!(asked, Err(Unread::Asked(_))), "{}", sub.get_name());
    }
}

#[test]
fn a_cause_is_told_once() {
    let io = || io::Error::from_raw_os_error(libc::ENOENT);
    let missing = "No such file or directory (os error 2)";
    let store = crate::store::StoreError::Io { action: "read", path: "/x".into(), source: io() };
    assert_eq!(reason(&store.into()), format!("cannot read /x: {missing}"));
    let context = anyhow::Error::new(io()).context("cannot open /y").context("no luck");
    assert_eq!(reason(&context), format!("no luck: cannot open /y: {missing}"));
}

proptest! {
    #[test]
    fn any_command_line_is_read_or_refused_in_one_line(
        args in proptest::collection::vec("\\PC*|-[a-z-]*|run|exec|stop|[a-z:/0-9]*", 0..6),
    ) {
        let args = std::iter::once("coracle".to_owned()).chain(args).map(OsString::from);
        if let Err(Unread::Wrong(why)) = read(args) {
            prop_assert!(!why.contains('\n') && !why.is_empty());
        }
    }
}

#[test]
fn what_is_told_to_be_absent_is() {
    fn walk(command: &clap::Command) {
        for option in command.get_arguments().filter_map(|arg| arg.get_long()) {
            assert_eq!(absent::option(&format!("--{option}")), None, "{}", command.get_name());
        }
        command.get_subcommands().for_each(walk);
    }
    walk(&Cli::command());
    for command in Cli::command().get_subcommands() {
        assert_eq!(absent::command(command.get_name()), None);
    }
    let wrong = |words: &[&str]| match read(words.iter().map(OsString::from)) {
        Err(Unread::Wrong(why)) => why,
        other => panic!("{other:?}"),
    };
    let device = wrong(&["coracle", "run", "--device", "/dev/fuse", "box"]);
    assert!(device.starts_with("there is no '--device': the host's devices"), "{device}");
    assert!(device.ends_with("(see 'coracle run --help')"), "{device}");
    let rmi = wrong(&["coracle", "rmi", "box"]);
    assert_eq!(rmi, "there is no 'rmi': it is 'coracle image rm' (see 'coracle --help')");
    let odd = wrong(&["coracle", "run", "--nonesuch", "box"]);
    assert!(!odd.contains("to pass"), "{odd}");
    let negative = wrong(&["coracle", "stop", "-t", "-1", "x"]);
    assert!(negative.contains("'-1' is no number from 0 up"), "{negative}");
}
