use super::*;
use crate::rank::unit::Random;
use crate::record::unit::record;
use crate::record::{Program, Sample};

const OPTIONS: Options = Options { all: false, threshold: 0.05 };

/// A run of `cells` cells and `rounds` rounds on a machine that is `speed` times as
/// fast as usual and gets slower as it goes on; ours is `ours` times as fast as
/// usual. Noise is skewed.
fn run(random: &mut Random, cells: usize, rounds: usize, speed: f64, ours: f64) -> Record {
    let mut all = record("net/none", &[], &[]);
    all.suites[0].cells.clear();
    for at in 0..cells {
        let mut cell = record(&format!("net/cell{at}"), &[], &[]).suites[0].cells.remove(0);
        let mut peer = cell.candidates[1].clone();
        peer.role = Role::Peer;
        peer.name = "peer".into();
        cell.candidates.insert(1, peer);
        for round in 0..rounds {
            let now = speed * (1.0 - 0.2 * round as f64 / rounds as f64);
            for (candidate, usual) in cell.candidates.iter_mut().zip([10.0 * ours, 2.0, 40.0]) {
                let value = usual * now / random.skewed(0.05);
                candidate.samples.push(Sample::of(value));
            }
        }
        all.add(cell);
    }
    all
}

fn verdicts(comparison: &Comparison) -> Vec<&Verdict> {
    comparison.lines.iter().map(|line| &line.verdict).collect()
}

#[test]
fn nothing_changed_on_a_machine_that_drifts_gives_no_alarm_beyond_the_claim() {
    let mut random = Random(7);
    let (mut alarms, mut claimed, runs) = (0, 0.0, 200);
    for seed in 0..runs {
        let rounds = [5, 10, 25][seed % 3];
        let old = run(&mut random, 12, rounds, 1.0, 1.0);
        let new = run(&mut random, 12, rounds, 0.7, 1.0);
        // No threshold: the test alone must hold what it claims.
        let found = compare(&old, &new, Options { threshold: 0.0, ..OPTIONS });
        claimed += found.family;
        let is_alarm = |v: &&Verdict| matches!(v, Verdict::Better | Verdict::Worse);
        alarms += usize::from(verdicts(&found).iter().any(is_alarm));
    }
    assert!(claimed < 0.08 * runs as f64, "{claimed} of {runs}: the claim is worth little");
    let most = claimed + 3.0 * claimed.sqrt();
    assert!((alarms as f64) < most, "{alarms} alarms in {runs}, claimed {claimed}");
    assert!(alarms > 0, "no alarm in {runs} runs: does the test work?");
}

#[test]
fn without_the_references_the_same_drift_would_alarm() {
    let mut random = Random(8);
    let alone = |mut record: Record| {
        for cell in &mut record.suites[0].cells {
            cell.candidates.truncate(1);
        }
        record
    };
    let old = alone(run(&mut random, 3, 25, 1.0, 1.0));
    let new = alone(run(&mut random, 3, 25, 0.7, 1.0));
    let found = compare(&old, &new, OPTIONS);
    assert!(found.is_worse(), "{}", found.in_words());
    assert!(found.in_words().contains("no peer or limit to relate it to"));
}

#[test]
fn real_changes_are_found_and_measured() {
    let mut random = Random(9);
    for (rounds, ours) in [(5, 2.0), (5, 0.5), (10, 1.4), (25, 1.2), (25, 0.85), (50, 1.1)] {
        let old = run(&mut random, 12, rounds, 1.0, 1.0);
        let new = run(&mut random, 12, rounds, 0.7, ours);
        let found = compare(&old, &new, OPTIONS);
        let wanted = if ours > 1.0 { Verdict::Better } else { Verdict::Worse };
        let right = verdicts(&found).iter().filter(|verdict| ***verdict == wanted).count();
        assert!(right >= 11, "{rounds} rounds, {ours}: {}", found.in_words());
        assert_eq!(found.is_worse(), ours < 1.0);
        let change = found.lines[0].change.unwrap();
        let inside = (change.low..change.high).contains(&(ours - 1.0));
        assert!(inside, "{ours}: {change:?}");
    }
}

#[test]
fn fewer_seconds_are_better() {
    let mut random = Random(10);
    let mut old = run(&mut random, 2, 10, 1.0, 1.0);
    let mut new = run(&mut random, 2, 10, 1.0, 0.5);
    for record in [&mut old, &mut new] {
        record.suites[0].cells.iter_mut().for_each(|cell| cell.head.better = Better::Lower);
    }
    let found = compare(&old, &new, OPTIONS);
    assert_eq!(verdicts(&found), [&Verdict::Better, &Verdict::Better], "{}", found.in_words());
}

#[test]
fn a_change_must_exceed_the_threshold() {
    let old = record("net/a", &[100.0, 100.1, 100.2, 100.3, 100.4, 100.5, 100.6], &[1.0; 7]);
    let new = record("net/a", &[103.0, 103.1, 103.2, 103.3, 103.4, 103.5, 103.6], &[1.0; 7]);
    let at = |threshold| compare(&old, &new, Options { all: false, threshold }).lines.remove(0);
    assert_eq!(at(0.05).verdict, Verdict::Same(Some("too small to count".into())));
    assert_eq!(at(0.02).verdict, Verdict::Better);
}

#[test]
fn a_change_must_exceed_what_unchanged_programs_moved() {
    let mut random = Random(11);
    let old = run(&mut random, 12, 25, 1.0, 1.0);
    let mut new = run(&mut random, 12, 25, 1.0, 1.15);
    // Half of the limits seem to be 1.5 times what they were: so much for 15 %.
    for cell in new.suites[0].cells.iter_mut().step_by(2) {
        cell.candidates[2].samples.iter_mut().for_each(|sample| sample.value *= 1.5);
    }
    let found = compare(&old, &new, OPTIONS);
    assert!(found.floors["net"] > 0.3, "{:?}", found.floors);
    assert!(!verdicts(&found).contains(&&Verdict::Better), "{}", found.in_words());
}

#[test]
fn peers_are_compared_when_asked_for() {
    let mut random = Random(12);
    let old = run(&mut random, 1, 10, 1.0, 1.0);
    let found = compare(&old, &old, Options { all: true, ..OPTIONS });
    assert_eq!(found.lines.len(), 3);
    assert_eq!(verdicts(&found), [&Verdict::Same(None); 3]);
    assert_eq!(found.lines[0].references, 2);
    assert_eq!(found.lines[1].references, 1);
}

#[test]
fn failures_are_worse_and_their_end_is_better() {
    let good = record("net/a", &[1.0; 6], &[1.0; 6]);
    let mut bad = good.clone();
    bad.suites[0].cells[0].candidates[0].failure = Some("wrong byte".into());
    let found = compare(&good, &bad, OPTIONS);
    assert!(found.is_worse() && found.in_words().contains("WORSE: it fails now"));
    assert_eq!(compare(&bad, &good, OPTIONS).lines[0].verdict, Verdict::Better);
    let both = compare(&bad, &bad, OPTIONS);
    assert_eq!(both.lines[0].verdict, Verdict::NotComparable("fails in both".into()));
}

#[test]
fn what_cannot_be_compared_says_why() {
    let why = |old: &Record, new: &Record| {
        let found = compare(old, new, OPTIONS);
        let reasons = found.lines.iter().map(|line| match &line.verdict {
            Verdict::NotComparable(why) => why.clone(),
            other => panic!("{other:?}"),
        });
        reasons.collect::<Vec<_>>().join("; ")
    };
    let six = record("net/a", &[1.0; 6], &[1.0; 6]);
    let few = record("net/a", &[1.0; 4], &[1.0; 4]);
    assert!(why(&few, &few).contains("4 and 4 rounds cannot tell"));
    let elsewhere = record("net/b", &[1.0; 6], &[1.0; 6]);
    assert_eq!(why(&six, &elsewhere), "the cell is only in OLD; the cell is only in NEW");
    let mut other = six.clone();
    other.suites[0].cells[0].head.unit = "ms".into();
    assert_eq!(why(&six, &other), "measured in 1/s before");
    let mut impossible = six.clone();
    impossible.suites[0].cells[0].impossible = Some("no netem".into());
    assert!(why(&six, &impossible).contains("NEW's machine: no netem"));
    let mut params = six.clone();
    params.suites[0].cells[0].head.params.clear();
    assert!(why(&six, &params).contains("parameters"));
    let mut renamed = six.clone();
    renamed.suites[0].cells[0].candidates[0].name = "new one".into();
    assert_eq!(why(&six, &renamed), "it is not in OLD");
}

#[test]
fn other_machines_are_said_and_compared_by_ratios_alone() {
    let mut random = Random(13);
    let old = run(&mut random, 2, 10, 1.0, 1.0);
    let mut new = run(&mut random, 2, 10, 3.0, 1.0);
    new.machine.cpu = "a faster one".into();
    let found = compare(&old, &new, OPTIONS);
    assert!(found.in_words().starts_with("! DIFFERENT MACHINES"), "{}", found.in_words());
    assert_eq!(verdicts(&found), [&Verdict::Same(None); 2], "{}", found.in_words());
    for cell in &mut new.suites[0].cells {
        cell.candidates.truncate(1);
    }
    let alone = compare(&old, &new, OPTIONS);
    assert!(verdicts(&alone).iter().all(|v| matches!(v, Verdict::NotComparable(_))));
}

#[test]
fn a_peer_of_another_version_is_no_reference() {
    let mut old = record("net/a", &[1.0; 6], &[1.0; 6]);
    let program = |version: &str| Program {
        name: "limit".into(),
        path: "/x".into(),
        version: version.into(),
    };
    let mut new = old.clone();
    assert_eq!(compare(&old, &new, OPTIONS).lines[0].references, 1);
    old.programs.push(program("1"));
    new.programs.push(program("2"));
    let found = compare(&old, &new, OPTIONS);
    assert_eq!(found.lines[0].references, 0);
    assert!(found.warnings[0].contains("limit"), "{:?}", found.warnings);
}

#[test]
fn zeros_are_compared_as_differences() {
    let old = record("net/a", &[0.0, 0.1, 0.0, 0.2, 0.0, 0.1], &[1.0; 6]);
    let new = record("net/a", &[9.0, 9.1, 9.2, 9.3, 9.4, 9.5], &[1.0; 6]);
    let found = compare(&old, &new, OPTIONS);
    assert_eq!(found.lines[0].verdict, Verdict::Better, "{}", found.in_words());
    let zeros = record("net/a", &[0.0; 6], &[1.0; 6]);
    assert_eq!(compare(&zeros, &zeros, OPTIONS).lines[0].verdict, Verdict::Same(None));
}
