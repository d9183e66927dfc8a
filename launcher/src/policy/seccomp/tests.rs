use super::*;

fn source(single_id: bool) -> Source<'static> {
    let capabilities = crate::policy::capabilities();
    Source { seccomp: &Seccomp::Default, capabilities, deny: &[], single_id }
}

fn seccomp(single_id: bool) -> Result<Vec<u8>, PolicyError> {
    source(single_id).compile()
}

fn cached_seccomp(dir: &Path, single_id: bool) -> Result<Vec<u8>, PolicyError> {
    source(single_id).cached(dir)
}

/// Runs a program of classic BPF as the kernel does, on what it is shown of a
/// call. Returns what the filter answers.
fn judge(program: &[u8], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    for arg in args {
        data.extend(arg.to_ne_bytes());
    }
    let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut acc) = (0, 0u32);
    loop {
        let insn = &program[at * 8..at * 8 + 8];
        let code = u16::from_ne_bytes([insn[0], insn[1]]);
        let (jt, jf, k) = (usize::from(insn[2]), usize::from(insn[3]), word(insn, 4));
        at += 1;
        let mut branch = |holds| at += if holds { jt } else { jf };
        match code {
            0x20 => acc = word(&data, k as usize),
            0x54 => acc &= k,
            0x05 => at += k as usize,
            0x15 => branch(acc == k),
            0x25 => branch(acc > k),
            0x35 => branch(acc >= k),
            0x45 => branch(acc & k != 0),
            0x06 => return k,
            other => panic!("instruction {other:#x} is not expected"),
        }
    }
}

const ALLOW: u32 = 0x7fff_0000;
const NO_SUCH: u32 = 0x0005_0000 | libc::ENOSYS as u32;
const REFUSED: u32 = 0x0005_0000 | libc::EPERM as u32;
const PRETENDED: u32 = 0x0005_0000;
const ASKED: u32 = 0x7fc0_0000;

fn on(program: &[u8], arch: ScmpArch, call: &str, args: &[u64]) -> u32 {
    let token = if arch == ScmpArch::X86 { AUDIT_ARCH_I386 } else { AUDIT_ARCH_NATIVE };
    let number = number(call, arch).unwrap_or_else(|| panic!("{call} has a number"));
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    judge(program, token, number, all)
}

const BOTH: [ScmpArch; 2] = [ScmpArch::Native, ScmpArch::X86];
/// What a caller may put above the 32 bits that count.
const STRAY: u64 = 0xdead_beef_0000_0000;

#[test]
fn every_name_is_known_or_young() {
    // Calls younger than the oldest libseccomp supported (2.5.4).
    let young = [
        "cachestat",
        "fchmodat2",
        "futex_requeue",
        "futex_wait",
        "futex_wake",
        "getxattrat",
        "listmount",
        "listxattrat",
        "map_shadow_stack",
        "mseal",
        "removexattrat",
        "setxattrat",
        "statmount",
    ];
    let refused = calls::DENIED.iter().chain(calls::ADMIN);
    for call in calls::ALLOWED.iter().copied().flatten().chain(refused) {
        let known = ScmpSyscall::from_name(call).is_ok();
        assert!(known || young.contains(call), "libseccomp has never heard of {call}");
    }
}

#[test]
fn no_call_is_listed_twice() {
    let refused = calls::DENIED.iter().chain(calls::ADMIN);
    let mut all: Vec<_> =
        calls::ALLOWED.iter().copied().flatten().chain(refused).copied().collect();
    all.sort_unstable();
    let count = all.len();
    all.dedup();
    assert_eq!(all.len(), count);
}

#[test]
fn every_guarded_call_is_in_the_list() {
    let ids = [NAMESPACE_GUARDS, SINGLE_ID, SINGLE_ID_WIDE[0], SINGLE_ID_WIDE[1], SINGLE_ID_NARROW];
    for call in GUARDS.iter().chain(ids.into_iter().flatten()).flat_map(|guard| guard.calls) {
        assert!(calls::ALLOWED.iter().any(|family| family.contains(call)), "{call}");
    }
}

#[test]
fn calls_are_judged_by_name_on_both_architectures() {
    let program = seccomp(false).unwrap();
    for arch in BOTH {
        for call in ["read", "openat", "execve", "mknod", "chroot", "ptrace", "setuid", "chown"] {
            assert_eq!(on(&program, arch, call, &[1, 33, 33, 33]), ALLOW, "{call} on {arch:?}");
        }
        for call in ["mount", "bpf", "keyctl", "setns", "io_uring_setup", "userfaultfd", "reboot"] {
            assert_eq!(on(&program, arch, call, &[]), REFUSED, "{call} on {arch:?}");
        }
        assert_eq!(on(&program, arch, "clone3", &[]), NO_SUCH);
    }
    for arch in [AUDIT_ARCH_NATIVE, AUDIT_ARCH_I386] {
        for number in [600, 0x3fff_ffff, u32::MAX] {
            assert_eq!(judge(&program, arch, number, [0; 6]), NO_SUCH);
        }
    }
}

#[test]
fn other_architectures_and_x32_have_no_calls() {
    for single_id in [false, true] {
        let program = seccomp(single_id).unwrap();
        for number in 0..500 {
            let x32 = number | 0x4000_0000;
            assert_eq!(judge(&program, AUDIT_ARCH_NATIVE, x32, [33; 6]), NO_SUCH);
            // ARM, and no architecture at all.
            assert_eq!(judge(&program, 0x4000_0028, number, [33; 6]), NO_SUCH);
            assert_eq!(judge(&program, 0, number, [33; 6]), NO_SUCH);
        }
    }
}

#[test]
fn arguments_are_judged_by_the_bits_the_kernel_looks_at() {
    let program = seccomp(false).unwrap();
    for arch in BOTH {
        for stray in [0, STRAY, u64::MAX << 32] {
            let judged = |call, arg: u64| on(&program, arch, call, &[arg | stray]);
            let ioctl = |request: u64| on(&program, arch, "ioctl", &[0, request | stray]);
            assert_eq!(ioctl(TIOCSTI.into()), REFUSED);
            assert_eq!(ioctl(TIOCLINUX.into()), REFUSED);
            for request in [0x5401, 0x5411, 0x5413, 0x541b, 0x541d, 0x8004_5430] {
                assert_eq!(ioctl(request), ALLOW, "{request:#x}");
            }
            assert_eq!(judged("clone", 0x11), ALLOW);
            assert_eq!(judged("clone", 0x80), ALLOW);
            // As the C library makes threads.
            assert_eq!(judged("clone", 0x3d_0f00), ALLOW);
            for bit in [17, 25, 26, 27, 28, 29, 30] {
                assert_eq!(judged("clone", 0x11 | 1 << bit), REFUSED, "{bit}");
                assert_eq!(judged("unshare", 1 << bit), REFUSED, "{bit}");
            }
            assert_eq!(judged("unshare", 0x600), ALLOW);
            assert_eq!(judged("unshare", 0x80), REFUSED);
            assert_eq!(judged("socket", 2), ALLOW);
            assert_eq!(judged("socket", 40), REFUSED);
            for persona in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
                assert_eq!(judged("personality", persona), ALLOW);
            }
            // ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC
            for persona in [0x4_0000, 0x40_0000] {
                assert_eq!(judged("personality", persona), REFUSED);
            }
        }
    }
}

#[test]
fn a_single_id_pretends_or_asks_about_all_others() {
    let program = seccomp(true).unwrap();
    let same = seccomp(false).unwrap();
    let wide = u64::from(u32::MAX);
    let cases: [(ScmpArch, &str, u64); 3] =
        [(ScmpArch::Native, "", wide), (ScmpArch::X86, "32", wide), (ScmpArch::X86, "", 0xffff)];
    for (arch, suffix, none) in cases {
        for stray in [0, STRAY] {
            let (none, root, other) = (none | stray, stray, 33 | stray);
            let check = |call: &str, args: &[u64], answer| {
                let call = format!("{call}{suffix}");
                assert_eq!(on(&program, arch, &call, args), answer, "{call} {args:x?}");
                assert_eq!(on(&same, arch, &call, args), ALLOW, "{call} {args:x?}");
            };
            for call in ["setuid", "setgid", "setfsuid", "setfsgid"] {
                check(call, &[root], ALLOW);
                check(call, &[none], ALLOW);
                check(call, &[other], PRETENDED);
            }
            for call in ["chown", "lchown", "fchown"] {
                check(call, &[7, root, root], ALLOW);
                check(call, &[7, none, root], ALLOW);
                check(call, &[7, other, root], ASKED);
                check(call, &[7, none, other], ASKED);
            }
            for call in ["setreuid", "setregid"] {
                check(call, &[none, root], ALLOW);
                check(call, &[none, other], PRETENDED);
                check(call, &[other, none], PRETENDED);
            }
            for call in ["setresuid", "setresgid"] {
                check(call, &[none, root, none], ALLOW);
                check(call, &[none, root, other], PRETENDED);
                check(call, &[other, none, none], PRETENDED);
            }
            check("setgroups", &[0, 0], PRETENDED);
            check("setgroups", &[1, 4096], PRETENDED);
        }
    }
    for arch in BOTH {
        let at = |owner, group| on(&program, arch, "fchownat", &[0, 0, owner, group, 0]);
        assert_eq!(at(0, wide), ALLOW);
        assert_eq!(at(33, wide), ASKED);
        assert_eq!(at(wide, 33), ASKED);
        // The other guards stand.
        assert_eq!(on(&program, arch, "ioctl", &[0, TIOCSTI.into()]), REFUSED);
        assert_eq!(on(&program, arch, "mount", &[]), REFUSED);
    }
}

#[test]
fn the_cache_gives_what_was_made_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache");
    let read = |single_id| cached_seccomp(&cache, single_id).unwrap();
    for single_id in [false, true] {
        let fresh = seccomp(single_id).unwrap();
        assert_eq!(read(single_id), fresh);
        assert_eq!(read(single_id), fresh);
    }
    let files: Vec<_> = fs::read_dir(&cache).unwrap().map(|item| item.unwrap().path()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    // What was cut off, changed, or made for something else is made anew.
    for file in &files {
        let good = fs::read(file).unwrap();
        let mut changed = good.clone();
        changed[good.len() - 5] ^= 1;
        for bad in [&good[..good.len() - 8], &changed, b"", b"coracle 0.0\n"] {
            fs::write(file, bad).unwrap();
            read(false);
            read(true);
            assert_eq!(fs::read(file).unwrap(), good);
        }
    }
}

#[test]
fn a_cache_that_cannot_be_kept_is_done_without() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    assert_eq!(cached_seccomp(&file.join("cache"), false).unwrap(), seccomp(false).unwrap());
}

#[test]
fn mounts_and_namespaces_are_for_who_was_given_the_capability() {
    let admin = Source { capabilities: ADMIN, ..source(false) }.compile().unwrap();
    for arch in BOTH {
        for call in ["mount", "umount2", "setns", "pivot_root", "fsopen", "move_mount"] {
            assert_eq!(on(&admin, arch, call, &[]), ALLOW, "{call} on {arch:?}");
        }
        assert_eq!(on(&admin, arch, "unshare", &[0x1000_0000]), ALLOW);
        assert_eq!(on(&admin, arch, "clone", &[0x1000_0011]), ALLOW);
        for call in ["bpf", "keyctl", "reboot", "kexec_load"] {
            assert_eq!(on(&admin, arch, call, &[]), REFUSED, "{call} on {arch:?}");
        }
        assert_eq!(on(&admin, arch, "ioctl", &[0, TIOCSTI.into()]), REFUSED);
    }
}

#[test]
fn more_can_be_refused() {
    let deny = ["ptrace".to_owned(), "mkdir".to_owned()];
    let program = Source { deny: &deny, ..source(false) }.compile().unwrap();
    for arch in BOTH {
        assert_eq!(on(&program, arch, "ptrace", &[]), REFUSED);
        assert_eq!(on(&program, arch, "mkdir", &[]), REFUSED);
        assert_eq!(on(&program, arch, "rmdir", &[]), ALLOW);
    }
}

#[test]
fn without_a_filter_only_the_single_id_has_guards() {
    let unconfined = |single_id| Source { seccomp: &Seccomp::Unconfined, ..source(single_id) };
    assert!(unconfined(false).compile().unwrap().is_empty());
    let program = unconfined(true).compile().unwrap();
    for arch in BOTH {
        assert_eq!(on(&program, arch, "mount", &[]), ALLOW);
        assert_eq!(on(&program, arch, "fchownat", &[0, 0, 33, 0, 0]), ASKED);
        assert_eq!(on(&program, arch, "setgroups", &[1, 1]), PRETENDED);
    }
    assert_eq!(judge(&program, AUDIT_ARCH_NATIVE, 9999, [0; 6]), ALLOW);
}

#[test]
fn profiles_of_ones_own_have_no_guards_but_those_of_a_single_id() {
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture":
        "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}], "syscalls":
        [{"names": ["mkdir", "nonesuch"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30}]}"#;
    let own = Seccomp::Profile { path: "/p".into(), text: text.to_owned() };
    let dir = tempfile::tempdir().unwrap();
    for single_id in [false, true] {
        let source = Source { seccomp: &own, ..source(single_id) };
        let program = source.cached(dir.path()).unwrap();
        assert_eq!(program, source.cached(dir.path()).unwrap());
        for arch in BOTH {
            assert_eq!(on(&program, arch, "mkdir", &[]), 0x0005_0000 | 30);
            assert_eq!(on(&program, arch, "mount", &[]), ALLOW);
            let chown = if single_id { ASKED } else { ALLOW };
            assert_eq!(on(&program, arch, "fchownat", &[0, 0, 33, 0, 0]), chown);
        }
        assert_eq!(judge(&program, AUDIT_ARCH_NATIVE, 0x4000_0000 | 83, [0; 6]), NO_SUCH);
    }
    let bad = Seccomp::Profile { path: "/p".into(), text: "{}".to_owned() };
    let why = Source { seccomp: &bad, ..source(false) }.compile().unwrap_err().to_string();
    assert!(why.starts_with("the system call profile /p: ") && why.contains("defaultAction"));
}

#[test]
#[ignore = "a measurement, not a check: run it by name, in release mode"]
#[expect(clippy::disallowed_methods, reason = "a measurement")]
fn time_to_make_and_to_read() {
    let dir = tempfile::tempdir().unwrap();
    cached_seccomp(dir.path(), false).unwrap();
    let median = |act: &dyn Fn() -> Vec<u8>| {
        let mut times: Vec<_> = (0..101)
            .map(|_| {
                let start = std::time::Instant::now();
                assert!(!act().is_empty());
                start.elapsed()
            })
            .collect();
        times.sort();
        times[50]
    };
    println!("{} instructions", seccomp(false).unwrap().len() / 8);
    println!("made in {:?}", median(&|| seccomp(false).unwrap()));
    println!("read in {:?}", median(&|| cached_seccomp(dir.path(), false).unwrap()));
}
