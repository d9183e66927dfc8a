use super::*;

use proptest::prelude::*;

const MODERN: Kernel = Kernel(6, 1);

/// What a filter says, in libseccomp's own words (pseudo filter code).
fn said(text: &str, capabilities: u64, kernel: Kernel) -> String {
    let filter = parse(text).unwrap().filter(capabilities, kernel).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    filter.export_pfc(&file).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    std::io::read_to_string(file).unwrap()
}

fn with_rule(rule: &str) -> String {
    format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{rule}]}}"#)
}

#[test]
fn rules_depend_on_capabilities_machine_and_kernel() {
    let allowed = |when: &str, capabilities, kernel| {
        let rule = format!(r#"{{"names": ["mount"], "action": "SCMP_ACT_ALLOW", {when}}}"#);
        said(&with_rule(&rule), capabilities, kernel).contains("mount")
    };
    let admin = 1 << 21;
    let other = if native_name() == "amd64" { "arm64" } else { "amd64" };
    for (when, capabilities, kernel, want) in [
        (r#""includes": {}"#.to_owned(), 0, MODERN, true),
        (r#""includes": null, "excludes": null, "args": null"#.into(), 0, MODERN, true),
        (r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#.into(), 0, MODERN, false),
        (r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#.into(), admin, MODERN, true),
        (r#""includes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}"#.into(), admin, MODERN, false),
        (r#""excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}"#.into(), admin, MODERN, false),
        (r#""excludes": {"caps": ["CAP_CHOWN"]}"#.into(), admin, MODERN, true),
        (format!(r#""includes": {{"arches": ["{}"]}}"#, native_name()), 0, MODERN, true),
        (format!(r#""includes": {{"arches": ["{other}"]}}"#), 0, MODERN, false),
        (format!(r#""excludes": {{"arches": ["{}"]}}"#, native_name()), 0, MODERN, false),
        (r#""includes": {"minKernel": "4.8"}"#.into(), 0, MODERN, true),
        (r#""includes": {"minKernel": "6.2"}"#.into(), 0, MODERN, false),
        (r#""excludes": {"minKernel": "4.8"}"#.into(), 0, MODERN, false),
        (r#""includes": {"minKernel": "4.8"}"#.into(), 0, Kernel::default(), false),
    ] {
        assert_eq!(allowed(&when, capabilities, kernel), want, "{when}");
    }
}

#[test]
fn several_conditions_of_one_argument_are_alternatives() {
    let rule = |indices: [u32; 2]| {
        let condition =
            |i| format!(r#"{{"index": {i}, "value": 5, "valueTwo": 0, "op": "SCMP_CMP_EQ"}}"#);
        let args = indices.map(condition).join(",");
        let text = format!(r#"{{"name": "socket", "action": "SCMP_ACT_ALLOW", "args": [{args}]}}"#);
        let profile = parse(&with_rule(&text)).unwrap();
        profile.syscalls.unwrap()[0].alternatives().iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(rule([0, 1]), [2]);
    assert_eq!(rule([1, 1]), [1, 1]);
}

#[test]
fn what_holds_anyway_is_no_rule() {
    let text = with_rule(r#"{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}"#);
    assert!(!said(&text, 0, MODERN).contains("mount"));
    let text = with_rule(r#"{"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errno": "ENOSYS"}"#);
    assert!(said(&text, 0, MODERN).contains("mount"));
}

#[test]
fn errors_by_name_and_number() {
    assert_eq!(errno("EPERM"), Some(1));
    assert_eq!(errno("ENOSYS"), Some(38));
    assert_eq!(errno("38"), Some(38));
    assert_eq!(errno("ENONSENSE"), None);
}

#[test]
fn versions() {
    assert_eq!(Kernel::parse("6.18.44-x"), Some(Kernel(6, 18)));
    assert_eq!(Kernel::parse("4.8"), Some(Kernel(4, 8)));
    assert!(Kernel(6, 18) > Kernel(6, 2) && Kernel(5, 19) < Kernel(6, 0));
    for bad in ["", "6", "six.one", "6.x"] {
        assert_eq!(Kernel::parse(bad), None, "{bad}");
    }
}

#[test]
fn a_bad_profile_says_what_is_wrong() {
    let rule = |rest: &str| {
        with_rule(&format!(r#"{{"names": ["mount"], "action": "SCMP_ACT_ALLOW", {rest}}}"#))
    };
    let top = |rest: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO", {rest}}}"#);
    for (text, words) in [
        ("".to_owned(), "line 1"),
        ("{}".into(), "defaultAction"),
        ("{\n\"defaultAction\": \"SCMP_ACT_DENY\"}".into(), "line 2"),
        (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.into(), "listener"),
        (top(r#""defaultErrno": "EWHAT""#), "EWHAT"),
        (top(r#""defaultErrnoRet": 70000"#), "70000"),
        (top(r#""unheardOf": 1"#), "unheardOf"),
        (top(r#""flags": ["SECCOMP_FILTER_FLAG_LOG"]"#), "FLAG_LOG"),
        (top(r#""listenerPath": "/x""#), "listener"),
        (top(r#""architectures": ["SCMP_ARCH_PDP11"]"#), "PDP11"),
        (
            top(r#""architectures": ["SCMP_ARCH_X86"],
                "archMap": [{"architecture": "SCMP_ARCH_X86"}]"#),
            "both",
        ),
        (with_rule(r#"{"action": "SCMP_ACT_ALLOW"}"#), "rule 1 of syscalls: it names no call"),
        (rule(r#""name": "read""#), "both name and names"),
        (
            rule(r#""args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]"#),
            "(mount): there is no",
        ),
        (rule(r#""args": [{"index": 0, "value": -1, "op": "SCMP_CMP_EQ"}]"#), "-1"),
        (rule(r#""args": [{"index": 0, "value": 0, "op": "SCMP_CMP_IS"}]"#), "SCMP_CMP_IS"),
        (rule(r#""includes": {"caps": ["CAP_FLY"]}"#), "CAP_FLY"),
        (rule(r#""includes": {"minKernel": "new"}"#), "'new'"),
        (rule(r#""includes": {"arch": []}"#), "arch"),
        (rule(r#""errno": "EWHAT""#), "EWHAT"),
    ] {
        let why = parse(&text).unwrap_err();
        assert!(why.contains(words) && !why.contains('\n'), "{text}: {why}");
    }
}

proptest! {
    #[test]
    fn arbitrary_text_is_read_or_refused(text in "[\\[\\]{}\":,a-zA-Z0-9_ ]{0,300}") {
        parse(&text).ok();
    }

    #[test]
    fn arbitrary_rules_make_a_filter_or_an_error(
        names in prop::collection::vec(prop::sample::select(vec!["read", "clone", "socket", "x"]), 1..4),
        conditions in prop::collection::vec((0u32..8, any::<u64>(), any::<u64>(), 0usize..7), 0..4),
        errno in any::<u32>(),
    ) {
        let ops = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
        let args: Vec<_> = conditions.iter().map(|(index, one, two, op)| format!(
            r#"{{"index": {index}, "value": {one}, "valueTwo": {two}, "op": "SCMP_CMP_{}"}}"#, ops[*op]
        )).collect();
        let text = with_rule(&format!(
            r#"{{"names": {names:?}, "action": "SCMP_ACT_ERRNO", "errnoRet": {errno}, "args": [{}]}}"#,
            args.join(",")
        ));
        if let Ok(profile) = parse(&text) {
            profile.filter(0, MODERN).ok();
        }
    }
}
