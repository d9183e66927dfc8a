use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Barrier;

use super::*;
use crate::spec::{Network, Overlay, Root, Upper};

fn spec(name: Option<&str>, remove: bool) -> Spec {
    Spec {
        name: name.map(str::to_owned),
        root: Root::Host,
        upper: Upper::Own,
        overlay: Overlay::Fuse,
        read_only: false,
        remove,
        detach: false,
        interactive: false,
        tty: false,
        env: BTreeMap::new(),
        workdir: None,
        user: None,
        volumes: Vec::new(),
        hostname: None,
        publish: Vec::new(),
        network: Network::None,
        command: vec!["true".to_owned()],
        stop_signal: None,
        security: crate::spec::Security::default(),
        restart: crate::spec::Restart::No,
        limits: crate::spec::Limits::default(),
        ulimits: Vec::new(),
        no_init: false,
        memory: crate::spec::InMemory::default(),
        labels: BTreeMap::new(),
        names: crate::spec::Names::default(),
        stop_timeout: None,
        pid_file: None,
        shares: crate::spec::Shares::default(),
    }
}

fn state(name: &str, remove: bool, status: Status) -> State {
    let me = Process::of(std::process::id().cast_signed()).unwrap();
    State {
        status,
        monitor: Some(me),
        init: Some(me),
        ..State::new(spec(Some(name), remove), map(), 7)
    }
}

fn status(store: &Store, name: &str) -> Option<Status> {
    store.find(name).unwrap().state().unwrap().map(|(state, _)| state.status)
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path().join("a/b/coracle")).unwrap();
    (dir, store)
}

fn map() -> IdMap {
    IdMap::of_caller(1, 1, None, "", "")
}

fn names(store: &Store) -> Vec<String> {
    store.list().unwrap().iter().map(|entry| entry.name().to_owned()).collect()
}

#[test]
fn a_container_goes_through_its_states() {
    let (_dir, store) = store();
    let container = store.create(&spec(Some("one"), false)).unwrap();
    assert_eq!(status(&store, "one"), None);
    for reached in [Status::Starting, Status::Running, Status::Exited { code: 3 }] {
        let written = state("one", false, reached);
        container.record(&written).unwrap();
        let (read, since) = store.find("one").unwrap().state().unwrap().unwrap();
        assert_eq!(read, written);
        assert_eq!(since, fs::metadata(container.state()).unwrap().modified().unwrap());
    }
    let dir = container.dir.clone();
    drop(container);
    assert_eq!(status(&store, "one"), Some(Status::Exited { code: 3 }));
    // Nothing is left of writing.
    let mut left: Vec<_> =
        fs::read_dir(dir).unwrap().map(|item| item.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["lock", "state.json", "upper", "work"]);
}

#[test]
fn only_the_owner_can_look_inside() {
    let (_dir, store) = store();
    let container = store.create(&spec(None, false)).unwrap();
    container.record(&state("x", false, Status::Created)).unwrap();
    for (path, mode) in [
        (container.dir.clone(), 0o700),
        (store.containers(), 0o700),
        (store.root().to_owned(), 0o700),
        (container.work(), 0o700),
        (container.upper(), 0o755),
        (container.state(), 0o600),
    ] {
        let found = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(found, mode, "{}", path.display());
    }
}

#[test]
fn an_upper_is_made_only_where_it_is_used() {
    let (_dir, store) = store();
    let ram = Spec { upper: Upper::Ram(None), ..spec(None, false) };
    let container = store.create(&ram).unwrap();
    assert!(!container.upper().exists() && !container.work().exists());
}

#[test]
fn names_are_made_up() {
    let (_dir, store) = store();
    let container = store.create(&spec(None, false)).unwrap();
    assert!(is_name(&container.name));
    assert_eq!(names(&store), [container.name]);
}

#[test]
fn a_name_is_given_once() {
    let (_dir, store) = store();
    let first = store.create(&spec(Some("one"), false)).unwrap();
    assert!(matches!(store.create(&spec(Some("one"), false)), Err(StoreError::Exists(_))));
    first.remove(&map()).unwrap();
    assert!(matches!(store.find("one"), Err(StoreError::Unknown(_))));
    store.create(&spec(Some("one"), false)).unwrap();
}

#[test]
fn of_many_at_once_one_gets_the_name() {
    let (_dir, store) = store();
    let start = Barrier::new(8);
    let won: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    match store.create(&spec(Some("one"), false)) {
                        // Held until all have tried.
                        Ok(container) => Some(container),
                        Err(StoreError::Exists(_)) => None,
                        Err(error) => panic!("{error}"),
                    }
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).count()
    });
    assert_eq!(won, 1);
}

#[test]
fn paths_are_not_names() {
    let (_dir, store) = store();
    for name in ["", ".", "..", "../containers", "/", "/etc"] {
        assert!(matches!(store.find(name), Err(StoreError::Unknown(_))), "{name}");
    }
}

#[test]
fn what_crashed_is_put_right() {
    let (_dir, store) = store();
    let make = |name, remove, reached: Option<Status>| {
        let container = store.create(&spec(Some(name), remove)).unwrap();
        if let Some(reached) = reached {
            container.record(&state(name, remove, reached)).unwrap();
        }
        container
    };
    let ended = Status::Exited { code: 0 };
    // Dropping lets go of the lock, as death does.
    drop(make("never-ran", false, None));
    drop(make("made", false, Some(Status::Starting)));
    drop(make("waits", false, Some(Status::Created)));
    drop(make("waits-rm", true, Some(Status::Created)));
    drop(make("restarts", false, Some(Status::Restarting { code: 1 })));
    let again = make("again", false, None);
    again.record(&State { kept: true, ..state("again", false, Status::Starting) }).unwrap();
    drop(again);
    drop(make("ran", false, Some(Status::Running)));
    drop(make("ran-rm", true, Some(Status::Running)));
    drop(make("ended", false, Some(ended)));
    drop(make("ended-rm", true, Some(ended)));
    let lives = make("lives", true, Some(Status::Running));
    let starts = make("starts", false, None);
    fs::create_dir(store.containers().join("no-lock")).unwrap();
    fs::create_dir(store.containers().join(".gone-x-1")).unwrap();

    // What nobody knows is told even before it is put right.
    assert_eq!(status(&store, "ran"), Some(Status::Lost));

    let left = store.sweep().unwrap();
    assert!(left.is_empty(), "{left:?}");
    let left = ["again", "ended", "lives", "ran", "restarts", "starts", "waits", "waits-rm"];
    assert_eq!(names(&store), left);
    assert_eq!(status(&store, "waits"), Some(Status::Created));
    for name in ["again", "restarts"] {
        assert_eq!(store.find(name).unwrap().read().unwrap().unwrap().status, Status::Lost);
    }
    assert!(!store.containers().join(".gone-x-1").exists());
    assert_eq!(store.find("ran").unwrap().read().unwrap().unwrap().status, Status::Lost);
    assert_eq!(status(&store, "ended"), Some(ended));
    assert_eq!(status(&store, "lives"), Some(Status::Running));
    assert_eq!(status(&store, "starts"), None);
    drop((lives, starts));
}

#[test]
fn a_sweep_never_takes_what_is_being_made() {
    let (_dir, store) = store();
    std::thread::scope(|scope| {
        let sweeper = scope.spawn(|| {
            for _ in 0..200 {
                assert!(store.sweep().unwrap().is_empty());
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let container = store.create(&spec(None, true)).unwrap();
                    container.record(&state("x", true, Status::Running)).unwrap();
                    assert_eq!(status(&store, &container.name), Some(Status::Running));
                    container.remove(&map()).unwrap();
                }
            });
        }
        sweeper.join().unwrap();
    });
    assert!(names(&store).is_empty());
}

#[test]
fn a_live_container_cannot_be_claimed_and_a_dead_one_once() {
    let (_dir, store) = store();
    let container = store.create(&spec(Some("one"), false)).unwrap();
    let entry = store.find("one").unwrap();
    assert!(matches!(store.claim(&entry).unwrap(), Claim::Live(_)));
    drop(container);
    let Claim::Ours(ours) = store.claim(&entry).unwrap() else { panic!("it is free") };
    assert!(matches!(store.claim(&entry).unwrap(), Claim::Live(_)));
    // One who only looks does not keep anybody from it.
    drop(ours);
    let looks = entry.open_lock(false).unwrap();
    looks.lock_shared().unwrap();
    let ours = std::thread::scope(|scope| {
        let claim = scope.spawn(|| store.claim(&entry).unwrap());
        looks.unlock().unwrap();
        claim.join().unwrap()
    });
    let Claim::Ours(ours) = ours else { panic!("it is free") };
    ours.remove(&map()).unwrap();
    assert!(matches!(store.claim(&entry), Err(StoreError::Unknown(_))));
    assert!(matches!(entry.state(), Err(StoreError::Unknown(_))));
    entry.wait_released().unwrap();
}

#[test]
fn an_owner_on_its_way_out_is_still_an_owner() {
    // It has renamed its directory and waits for the store: whoever waited for it with
    // the store locked would wait for ever.
    let (_dir, store) = store();
    let container = store.create(&spec(Some("one"), true)).unwrap();
    let lock = container.entry().open_lock(false).unwrap();
    fs::rename(&container.dir, store.containers().join(".gone-one-1")).unwrap();
    assert!(is_owned(&lock).unwrap());
    drop(container);
    assert!(!is_owned(&lock).unwrap());
}

#[test]
fn waiting_ends_when_the_owner_lets_go() {
    let (_dir, store) = store();
    let container = store.create(&spec(Some("one"), true)).unwrap();
    let entry = container.entry();
    std::thread::scope(|scope| {
        let watch = entry.watch();
        let waiter = scope.spawn(|| watch.wait());
        container.leave_code(Some(42)).unwrap();
        container.remove(&map()).unwrap();
        assert_eq!(waiter.join().unwrap().unwrap(), Some(42));
    });
    assert!(names(&store).is_empty());
}

#[test]
fn damage_is_told_and_removes_nothing() {
    let (_dir, store) = store();
    let container = store.create(&spec(Some("one"), true)).unwrap();
    fs::write(container.state(), b"{").unwrap();
    drop(container);
    let left = store.sweep().unwrap();
    assert!(matches!(left.as_slice(), [StoreError::Damaged { .. }]), "{left:?}");
    assert_eq!(names(&store), ["one"]);
}

#[test]
fn a_process_is_known_by_its_start() {
    let me = Process::of(std::process::id().cast_signed()).unwrap();
    assert!(me.exists());
    assert!(!Process { start_time: me.start_time + 1, ..me }.exists());
    assert!(Process::of(i32::MAX).is_err());
}

/// A group that is full for as long as nobody writes otherwise: what a crash has left.
#[test]
fn nobody_waits_for_the_group_of_a_container_that_crashed() {
    let (dir, store) = store();
    let group = dir.path().join("group");
    fs::create_dir(&group).unwrap();
    fs::write(group.join("cgroup.events"), "populated 1\n").unwrap();
    fs::write(group.join("cgroup.kill"), "").unwrap();
    let crashed = store.create(&spec(Some("crashed"), false)).unwrap();
    let state = State { group: Some(group.clone()), ..state("crashed", false, Status::Running) };
    crashed.record(&state).unwrap();
    let entry = crashed.entry();
    drop(crashed);
    let (claims, other) = (store.clone(), entry.clone());
    let claiming = std::thread::spawn(move || claims.claim(&other).map(drop));
    // It is at the group once it has told it to end.
    while fs::read_to_string(group.join("cgroup.kill")).unwrap().is_empty() {
        std::thread::yield_now();
    }
    let second = store.create(&spec(Some("second"), false)).unwrap();
    assert!(!claiming.is_finished(), "the store was locked until the group was empty");
    assert!(matches!(store.claim(&entry).unwrap(), Claim::Live(_)), "it is nobody's");
    drop(second);
}

#[test]
fn directories_left_as_they_were_made_are_the_next_containers() {
    let (_dir, store) = store();
    fs::create_dir(store.cache()).unwrap();
    let kept = store.cache().join("spare");
    let inode = |container: &Container| fs::metadata(container.upper()).unwrap().ino();
    let make = |name: &str| store.create(&spec(Some(name), true)).unwrap();
    let first = make("first");
    let upper = inode(&first);
    first.record(&state("first", true, Status::Starting)).unwrap();
    fs::create_dir(first.work().join("work")).unwrap();
    fs::set_permissions(first.work().join("work"), fs::Permissions::from_mode(0o700)).unwrap();
    first.remove(&map()).unwrap();
    let left: Vec<_> = fs::read_dir(&kept).unwrap().map(|item| item.unwrap().file_name()).collect();
    assert!(left.len() == 2 && left.contains(&"upper".into()), "{left:?}");
    // A name that is taken stays so, and costs nothing.
    let second = make("second");
    assert!(inode(&second) == upper && !kept.exists());
    assert!(matches!(store.create(&spec(Some("second"), true)), Err(StoreError::Exists(_))));
    // One that is to have neither does not get them.
    let third = make("third");
    second.remove(&map()).unwrap();
    third.remove(&map()).unwrap();
    assert!(kept.exists());
    let bare = store.create(&Spec { upper: Upper::Ram(None), ..spec(Some("bare"), true) }).unwrap();
    assert!(kept.exists() && !bare.upper().exists());
    assert!(matches!(store.create(&spec(Some("bare"), true)), Err(StoreError::Exists(_))));
    store.drop_spare().unwrap();
    store.drop_spare().unwrap();
    assert!(!kept.exists());
    // What tells of the container goes with it.
    let mut marks: Vec<fn(&Container)> = vec![
        |c| fs::write(c.upper().join("file"), "x").unwrap(),
        |c| fs::set_permissions(c.upper(), fs::Permissions::from_mode(0o700)).unwrap(),
        |c| fs::write(c.work().join("file"), "x").unwrap(),
        |c| fs::create_dir_all(c.work().join("work/x")).unwrap(),
        |c| {
            let upper = c.upper();
            let path = std::ffi::CString::new(upper.as_os_str().as_encoded_bytes()).unwrap();
            crate::sys::xattr::set(&path, c"user.x", b"x").unwrap();
        },
        |c| {
            fs::remove_dir(c.upper()).unwrap();
            std::os::unix::fs::symlink("work", c.upper()).unwrap();
        },
    ];
    if nix::unistd::geteuid().is_root() {
        marks.push(|c| std::os::unix::fs::chown(c.upper(), None, Some(5)).unwrap());
    }
    for (index, mark) in marks.iter().enumerate() {
        let container = make("marked");
        mark(&container);
        container.remove(&map()).unwrap();
        assert!(!kept.exists(), "mark {index} is kept");
    }
}
