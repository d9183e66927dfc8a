//! The pure cores: work without a kernel in it. There are no peers: a figure is for
//! comparing with the same figure of another commit on the same machine.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use benches::micro::{Run, Workload, workloads};
use tests::clock;

use super::Extent;
use crate::method::{Candidate, Cell};
use crate::record::{Better, Head, Role, Sample};
use crate::scene::Scene;

/// The cells of this suite.
pub(crate) fn cells<'a>(_: &'a Scene, extent: Extent) -> Result<Vec<Cell<'a>>> {
    let time = extent.pick(Duration::from_millis(100), Duration::from_millis(500));
    let cell = |workload: Workload| Cell {
        head: Head {
            id: format!("micro/{}", workload.id),
            title: workload.title.to_owned(),
            unit: format!("{}/s", workload.units),
            better: Better::Higher,
            params: BTreeMap::new(),
            note: Some("one thread, nothing outside of this program".to_owned()),
        },
        seconds: time.as_secs_f64(),
        warm_up: 1,
        rounds: extent.rounds(9),
        candidates: vec![candidate(workload, time)],
        impossible: None,
    };
    Ok(workloads().into_iter().map(cell).collect())
}

fn candidate<'a>(workload: Workload, time: Duration) -> Candidate<'a> {
    // Kept over the rounds: a stack that has run for a while is the usual one.
    let mut run: Option<Run> = None;
    Candidate {
        name: "this build".to_owned(),
        role: Role::Ours,
        command: "inside of this program".to_owned(),
        subject: Box::new(move || {
            if run.is_none() {
                run = Some((workload.make)()?);
            }
            let run = run.as_mut().expect("made above");
            let start = clock::now();
            let mut done = 0;
            loop {
                run()?;
                done += workload.per_call;
                let elapsed = clock::now() - start;
                if elapsed >= time {
                    return Ok(Sample::of(done as f64 / elapsed.as_secs_f64()));
                }
            }
        }),
    }
}
