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

use super::published::spare_descriptor;
use super::rest::is_exhausted;
use super::{API, API_CLIENT, Driver, METRICS, METRICS_CLIENT};
use crate::clients::Clients;
use crate::control::{self, Answer};
use crate::inbox::Message;
use crate::metrics::{self, Traffic};
use crate::report;
use crate::stack::frame::VNET_LEN;
use crate::stack::report::Report;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

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
    Flows {
        client: u64,
        /// Flows to leave out at the beginning.
        skip: usize,
    },
    Metrics {
        client: u64,
    },
}

impl Driver {
    pub(super) fn api_accept(&mut self, now: Duration) {
        if !accept(&self.epoll, self.api.as_mut(), API_CLIENT, &mut self.spare) {
            self.let_rest(now, API);
        }
    }

    pub(super) fn api_ready(&mut self, client: u64) {
        let Some(api) = &mut self.api else { return };
        let Some(request) = api.read(client).filter(|request| control::is_whole(*request)) else {
            return;
        };
        match control::answer(request.bytes, self.stack.config(), &mut self.ports) {
            Answer::Reply(reply) => api.answer(client, &reply),
            Answer::Flows(skip) => {
                api.wait(client);
                self.collect(Asker::Flows { client, skip });
            }
        }
    }

    pub(super) fn metrics_accept(&mut self, now: Duration) {
        if !accept(&self.epoll, self.metrics.as_mut(), METRICS_CLIENT, &mut self.spare) {
            self.let_rest(now, METRICS);
        }
    }

    pub(super) fn metrics_ready(&mut self, client: u64) {
        let Some(metrics) = &mut self.metrics else { return };
        match metrics.read(client) {
            // It has asked for nothing.
            Some(request) if request.bytes.is_empty() => metrics.forget(client),
            Some(request) if metrics::is_whole(request) => {
                metrics.wait(client);
                self.collect(Asker::Metrics { client });
            }
            _ => {}
        }
    }

    fn collect(&mut self, asker: Asker) {
        if self.collections.len() >= COLLECTIONS_MAX {
            // Clients are bounded as well: these have gone.
            self.collections.pop_front();
        }
        let number = self.next_collection;
        self.next_collection += 1;
        let list = matches!(asker, Asker::Flows { .. });
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
            Asker::Flows { client, skip } => {
                let all: Vec<_> = answers.into_iter().flat_map(|(report, _)| report.list).collect();
                if let Some(api) = &mut self.api {
                    api.answer(client, &control::flows(&all, skip));
                }
            }
            Asker::Metrics { client } => {
                let hits = self.egress.as_ref().map(|egress| egress.hits());
                let text = metrics::render(&answers, hits.as_ref());
                if let Some(metrics) = &mut self.metrics {
                    metrics.answer(client, &metrics::answer(&text));
                }
            }
        }
    }

    /// Tells what the policy has denied.
    pub(super) fn tell_denied(&self) {
        if let Some(egress) = &self.egress {
            while let Some(denied) = egress.poll_denied() {
                report::tell(&denied.to_string());
            }
        }
    }
}

/// Accepts a connection, watched with a token of its id and `mark`. Without a descriptor
/// left, another client's or the spare one is given up for it, once. Gives whether the
/// listener may be listened to further.
fn accept(
    epoll: &Epoll,
    clients: Option<&mut Clients>,
    mark: u64,
    spare: &mut Option<Epoll>,
) -> bool {
    let Some(clients) = clients else { return true };
    if spare.is_none() {
        *spare = spare_descriptor();
    }
    for _ in 0..3 {
        match clients.accept() {
            Ok((id, client)) => {
                // A client that cannot be watched would wait for ever.
                if epoll.add(client, EpollEvent::new(EpollFlags::EPOLLIN, mark | id)).is_err() {
                    clients.forget(id);
                }
                return true;
            }
            Err(error) if is_exhausted(&error) => {
                if !clients.forget_oldest() && spare.take().is_none() {
                    return false;
                }
            }
            Err(error) => {
                use std::io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
                return matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock);
            }
        }
    }
    false
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
