//! What is told about the network while it runs: counters, the list of flows, frames
//! in a file, denials.
//!
//! # Theory of operation
//!
//! Each worker knows its own flows. Who asks the main worker starts a *collection*:
//! every worker is asked through its inbox, answers with what it has, and when the last
//! has answered the asker gets all of it. Answers carry the collection's number.

use std::io::IoSlice;
use std::time::Duration;

use super::{API_CLIENT, Driver, METRICS_CLIENT};
use crate::control::{self, FlowsWanted};
use crate::inbox::Message;
use crate::metrics::{self, Traffic};
use crate::report;
use crate::stack::frame::VNET_LEN;
use crate::stack::report::Report;
use nix::sys::epoll::{EpollEvent, EpollFlags};

/// Collections under way at most: as many as clients that may wait for one.
const COLLECTIONS_MAX: usize = 32;

/// Answers of the workers on their way together.
#[derive(Debug)]
pub(super) struct Collection {
    number: u64,
    asker: Asker,
    answers: Vec<(Report, Traffic)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Asker {
    Flows(FlowsWanted),
    Metrics(u64),
}

impl Driver {
    pub(super) fn api_accept(&mut self) {
        let Some((id, client)) = self.api.as_mut().and_then(control::Server::accept) else {
            return;
        };
        // A client that cannot be watched would wait for ever.
        let added = self.epoll.add(client, EpollEvent::new(EpollFlags::EPOLLIN, API_CLIENT | id));
        if let (Err(_), Some(api)) = (added, &mut self.api) {
            api.forget(id);
        }
    }

    pub(super) fn api_ready(&mut self, id: u64) {
        let Some(api) = &mut self.api else { return };
        if let Some(wanted) = api.ready(id, self.stack.config(), &mut self.ports) {
            self.collect(Asker::Flows(wanted));
        }
    }

    pub(super) fn metrics_accept(&mut self) {
        let Some((id, client)) = self.metrics.as_mut().and_then(metrics::Server::accept) else {
            return;
        };
        let event = EpollEvent::new(EpollFlags::EPOLLIN, METRICS_CLIENT | id);
        if let (Err(_), Some(metrics)) = (self.epoll.add(client, event), &mut self.metrics) {
            metrics.forget(id);
        }
    }

    pub(super) fn metrics_ready(&mut self, id: u64) {
        if self.metrics.as_mut().is_some_and(|server| server.ready(id)) {
            self.collect(Asker::Metrics(id));
        }
    }

    fn collect(&mut self, asker: Asker) {
        if self.collections.len() >= COLLECTIONS_MAX {
            // Clients are bounded as well: these have gone.
            self.collections.pop_front();
        }
        let number = self.next_collection;
        self.next_collection += 1;
        let list = matches!(asker, Asker::Flows(_));
        for inbox in self.inboxes.iter().skip(1) {
            inbox.send(Message::Report { number, list });
        }
        let own = (self.stack.report(list), self.traffic);
        self.collections.push_back(Collection { number, asker, answers: Vec::new() });
        self.collected(number, own);
    }

    /// Answers the main worker's question.
    pub(super) fn answer_report(&self, number: u64, list: bool) {
        let answer = Box::new((self.stack.report(list), self.traffic));
        self.inboxes[0].send(Message::Reported { number, answer });
    }

    /// Takes a worker's answer.
    pub(super) fn collected(&mut self, number: u64, answer: (Report, Traffic)) {
        let Some(at) = self.collections.iter().position(|c| c.number == number) else { return };
        let collection = &mut self.collections[at];
        collection.answers.push(answer);
        if collection.answers.len() < self.inboxes.len() {
            return;
        }
        let Some(Collection { asker, answers, .. }) = self.collections.remove(at) else { return };
        match asker {
            Asker::Flows(wanted) => {
                let all: Vec<_> = answers.into_iter().flat_map(|(report, _)| report.list).collect();
                if let Some(api) = &mut self.api {
                    api.list_flows(&wanted, &all);
                }
            }
            Asker::Metrics(client) => {
                let hits = self.egress.as_ref().map(|egress| egress.hits());
                let text = metrics::render(&answers, hits.as_ref());
                if let Some(server) = &mut self.metrics {
                    server.answer(client, &text);
                }
            }
        }
    }

    /// Tells what the policy has denied.
    pub(super) fn tell_denied(&self) {
        if let Some(egress) = &self.egress {
            while let Some(denied) = egress.poll_denied() {
                report::say(&denied.to_string());
            }
        }
    }
}

/// What is done with every frame besides.
#[derive(Debug)]
pub(super) struct Tap {
    pub(super) capture: Option<std::sync::Arc<crate::pcap::Capture>>,
    /// Frames begin with a virtio-net header.
    pub(super) vnet: bool,
}

impl Tap {
    /// Counts a frame and writes it to the capture; gives its length on the wire.
    pub(super) fn see(&self, now: Duration, parts: &[IoSlice<'_>], len: usize) -> u64 {
        let skip = if self.vnet { VNET_LEN } else { 0 };
        if let Some(capture) = &self.capture
            && let Err(error) = capture.write(now, parts, skip)
        {
            report::warn(&format!("the capture ends here: {error}"));
        }
        len.saturating_sub(skip) as u64
    }
}
