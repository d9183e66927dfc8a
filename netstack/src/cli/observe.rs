//! Options of both forms about what is told of a running network.

use clap::Args;

use super::value;
use crate::{metrics, pcap};

/// Where frames and counters go.
#[derive(Debug, Args)]
pub(super) struct Observe {
    /// Write all frames to FILE (pcap)
    #[arg(long, value_name = "FILE")]
    pcap: Option<std::path::PathBuf>,
    /// Start another file, FILE.1 and so on, when one has so many MiB
    #[arg(long, value_name = "MIB", value_parser = value::mebibytes, requires = "pcap")]
    pcap_size: Option<u64>,
    /// How many files there are then; after the last the first begins anew
    #[arg(long, value_name = "N", value_parser = value::pcap_files, requires = "pcap_size", default_value = "2")]
    pcap_files: u16,
    /// Give counters out for Prometheus, on a UNIX socket or a port of the loopback
    #[arg(long, value_name = "PATH|PORT", value_parser = metrics::address)]
    metrics: Option<metrics::Address>,
    /// Where the guest may connect to (TOML; read again on SIGHUP)
    #[arg(long, value_name = "FILE")]
    pub(super) policy: Option<std::path::PathBuf>,
}

impl Observe {
    pub(super) fn capture(&self) -> Option<pcap::Request> {
        let (size, files) = (self.pcap_size, self.pcap_files);
        self.pcap.clone().map(|path| pcap::Request { path, size, files })
    }

    pub(super) fn metrics(&self) -> Option<metrics::Address> {
        self.metrics.clone()
    }
}
