//! slirp4netns' API socket: ports published and withdrawn while the network runs; and,
//! beside its commands, `list_flows`.
//!
//! # Theory of operation
//!
//! One request a connection: one JSON object, one reply, closed. A request is
//! complete when it parses, when the client shuts its sending side down, or when
//! it has grown too long; so both clients that half-close and clients that wait
//! are served. Sockets do not block; [`Server`] holds [`CLIENTS_MAX`] unfinished
//! connections and drops the oldest for a new one, so that a silent client costs
//! nothing but its own request. The socket is made for its owner only.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::{Value, json};

use crate::config::{Config, Proto, Publish};
use crate::forward::Forwards;
use crate::stack::report::FlowInfo;

/// Longest request, in bytes.
pub const REQUEST_MAX: usize = 4095;
/// Flows in one reply at most: it must fit into a socket's buffer.
const FLOWS_MAX: usize = 500;
/// Unfinished connections held at most.
const CLIENTS_MAX: usize = 16;

/// Why there is no API socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on the API socket {path}: {source}{hint}")]
pub struct Error {
    path: String,
    source: std::io::Error,
    hint: &'static str,
}

/// Makes the API socket. One that a dead process has left is replaced.
///
/// # Errors
/// The path is in use or too long, or its directory cannot be written.
pub fn listen(path: &Path) -> Result<OwnedFd, Error> {
    let failed = |source: std::io::Error| {
        let hint = match source.kind() {
            ErrorKind::AddrInUse => "; another process listens there, or it is no socket",
            ErrorKind::InvalidInput => "; the path is too long for a socket",
            _ => "",
        };
        Error { path: path.display().to_string(), source, hint }
    };
    let bound = UnixListener::bind(path).or_else(|error| {
        if error.kind() == ErrorKind::AddrInUse && is_stale(path) {
            std::fs::remove_file(path)?;
            return UnixListener::bind(path);
        }
        Err(error)
    });
    let listener = bound.map_err(failed)?;
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener.into())
}

fn is_stale(path: &Path) -> bool {
    let socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let refused = |e: std::io::Error| e.kind() == ErrorKind::ConnectionRefused;
    socket && UnixStream::connect(path).is_err_and(refused)
}

/// The listening socket and the connections whose request is not complete.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    clients: VecDeque<Client>,
    next: u64,
}

#[derive(Debug)]
struct Client {
    id: u64,
    stream: UnixStream,
    request: Vec<u8>,
    /// It waits for the list of flows.
    asked: bool,
}

impl Server {
    /// On a socket made by [`listen`].
    pub fn new(listener: OwnedFd) -> Server {
        Server { listener: listener.into(), clients: VecDeque::new(), next: 0 }
    }

    /// Accepts a connection. Gives its id and its descriptor, to be watched for
    /// input; [`Server::ready`] is called when there is some.
    pub fn accept(&mut self) -> Option<(u64, BorrowedFd<'_>)> {
        let (stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        if self.clients.len() >= CLIENTS_MAX {
            self.clients.pop_front();
        }
        let id = self.next;
        // Below the bits that mark other kinds of tokens.
        self.next = (self.next + 1) & 0xffff_ffff;
        self.clients.push_back(Client { id, stream, request: Vec::new(), asked: false });
        self.clients.back().map(|client| (id, client.stream.as_fd()))
    }

    /// Closes a connection without an answer.
    pub fn forget(&mut self, id: u64) {
        self.clients.retain(|client| client.id != id);
    }

    /// Reads from a connection; answers and closes it once the request is complete.
    /// A list of flows is not known here: gives what is asked for, and the connection
    /// waits for [`Server::list_flows`].
    pub fn ready(
        &mut self,
        id: u64,
        config: &Config,
        forwards: &mut dyn Forwards,
    ) -> Option<FlowsWanted> {
        let at = self.clients.iter().position(|client| client.id == id)?;
        let client = &mut self.clients[at];
        let mut part = [0; REQUEST_MAX + 1];
        let ended = match client.stream.read(&mut part) {
            // It has half-closed, or says more than it may: the answer is on its way.
            Ok(_) if client.asked => return None,
            Ok(0) => true,
            Ok(len) => {
                client.request.extend_from_slice(&part[..len]);
                false
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return None;
            }
            Err(_) => {
                self.clients.remove(at);
                return None;
            }
        };
        let long = client.request.len() > REQUEST_MAX;
        // Incomplete JSON is told from wrong JSON only at its end.
        let whole = serde_json::from_slice::<Value>(&client.request).is_ok();
        if ended || long || whole {
            match answer(&client.request, config, forwards) {
                Answer::Reply(reply) => {
                    // A client that does not read its reply has lost it.
                    client.stream.write_all(&reply).ok();
                    self.clients.remove(at);
                }
                Answer::Flows(skip) => {
                    client.asked = true;
                    return Some(FlowsWanted { client: id, skip });
                }
            }
        }
        None
    }

    /// Answers the connection that asked for flows, and closes it.
    pub fn list_flows(&mut self, wanted: &FlowsWanted, flows: &[FlowInfo]) {
        let Some(at) = self.clients.iter().position(|c| c.id == wanted.client) else { return };
        let Some(mut client) = self.clients.remove(at) else { return };
        let part: Vec<Value> = flows.iter().skip(wanted.skip).take(FLOWS_MAX).map(flow).collect();
        let reply = json!({ "return": { "flows": part, "total": flows.len() } });
        client.stream.write_all(reply.to_string().as_bytes()).ok();
    }
}

fn flow(flow: &FlowInfo) -> Value {
    json!({
        "proto": flow.protocol,
        "state": flow.state,
        "guest": flow.guest.map(|guest| guest.to_string()),
        "peer": flow.peer.map(|peer| peer.to_string()),
    })
}

/// A connection that waits for the list of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlowsWanted {
    client: u64,
    /// Flows to leave out at the beginning.
    skip: usize,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// This is sent.
    Reply(Vec<u8>),
    /// The list of flows is sent, without so many at the beginning.
    Flows(usize),
}

/// Answers one request. Requests that cannot be carried out have
/// `{"error":{"desc":"bad request: …"}}` for an answer.
pub fn answer(request: &[u8], config: &Config, forwards: &mut dyn Forwards) -> Answer {
    let reply = match execute(request, config, forwards) {
        Ok(Executed::Reply(reply)) => reply,
        Ok(Executed::Flows(skip)) => return Answer::Flows(skip),
        Err(why) => json!({ "error": { "desc": format!("bad request: {why}") } }),
    };
    Answer::Reply(reply.to_string().into_bytes())
}

enum Executed {
    Reply(Value),
    Flows(usize),
}

fn execute(
    request: &[u8],
    config: &Config,
    forwards: &mut dyn Forwards,
) -> Result<Executed, String> {
    if request.len() > REQUEST_MAX {
        return Err(format!("longer than {REQUEST_MAX} bytes"));
    }
    let request: Value =
        serde_json::from_slice(request).map_err(|error| format!("not JSON: {error}"))?;
    let command = request.get("execute").and_then(Value::as_str).ok_or("no \"execute\"")?;
    let none = json!({});
    let arguments = request.get("arguments").unwrap_or(&none);
    match command {
        "add_hostfwd" => {
            let publish = publish(arguments, config)?;
            let id = forwards.add(publish).map_err(|error| format!("add_hostfwd: {error}"))?;
            Ok(Executed::Reply(json!({ "return": { "id": id } })))
        }
        "remove_hostfwd" => {
            let id = arguments.get("id").and_then(Value::as_u64);
            let id = id.ok_or("remove_hostfwd: no \"id\"")?;
            forwards.remove(id).map_err(|error| format!("remove_hostfwd: {error}"))?;
            Ok(Executed::Reply(json!({ "return": {} })))
        }
        "list_hostfwd" => {
            let entries: Vec<Value> = forwards.list().into_iter().map(entry).collect();
            // Clients know either form.
            let reply = json!({ "return": { "entries": entries }, "entries": entries });
            Ok(Executed::Reply(reply))
        }
        "list_flows" => match arguments.get("skip") {
            None | Some(Value::Null) => Ok(Executed::Flows(0)),
            Some(skip) => skip
                .as_u64()
                .and_then(|skip| usize::try_from(skip).ok())
                .map(Executed::Flows)
                .ok_or_else(|| "list_flows: \"skip\" is no number".to_owned()),
        },
        other => Err(format!("unknown command {other:?}")),
    }
}

fn entry((id, publish): (u64, Publish)) -> Value {
    json!({
        "id": id,
        "proto": publish.proto.to_string(),
        "host_addr": publish.host.ip().to_string(),
        "host_port": publish.host.port(),
        "guest_addr": publish.guest.ip().to_string(),
        "guest_port": publish.guest.port(),
    })
}

fn publish(arguments: &Value, config: &Config) -> Result<Publish, String> {
    let text = |key: &str| match arguments.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("add_hostfwd: \"{key}\" is no string")),
    };
    let port = |key: &str| match arguments.get(key).and_then(Value::as_u64) {
        Some(port @ 1..=65535) => Ok(port as u16),
        _ => Err(format!("add_hostfwd: \"{key}\" is no port number from 1 to 65535")),
    };
    let addr = |key: &str, default: Option<IpAddr>| match (text(key)?, default) {
        ("", Some(default)) => Ok(default),
        (text, _) => text
            .parse::<IpAddr>()
            .map_err(|_| format!("add_hostfwd: \"{key}\" {text:?} is no IP address")),
    };
    // Also the names of one family that later clients use.
    let proto = match text("proto")? {
        "tcp" | "tcp4" | "tcp6" => Proto::Tcp,
        "udp" | "udp4" | "udp6" => Proto::Udp,
        other => return Err(format!("add_hostfwd: \"proto\" {other:?} is neither tcp nor udp")),
    };
    let v6 = text("proto")?.ends_with('6');
    let all: IpAddr = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let host = addr("host_addr", Some(all))?;
    let default_guest: IpAddr = match host {
        IpAddr::V6(_) if config.enable_ipv6 => config.v6.guest.into(),
        _ => config.v4.guest.into(),
    };
    let guest = match addr("guest_addr", Some(default_guest))? {
        guest if guest.is_unspecified() => default_guest,
        guest => guest,
    };
    if guest.is_ipv6() && !config.enable_ipv6 {
        return Err("add_hostfwd: \"guest_addr\" is IPv6, which is not enabled".into());
    }
    Ok(Publish {
        proto,
        host: SocketAddr::new(host, port("host_port")?),
        guest: SocketAddr::new(guest, port("guest_port")?),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Shutdown;

    use proptest::prelude::*;

    use super::*;
    use crate::forward;

    #[derive(Default)]
    struct Ports {
        ports: BTreeMap<u64, Publish>,
        last: u64,
    }

    impl Forwards for Ports {
        fn add(&mut self, publish: Publish) -> Result<u64, forward::Error> {
            if self.ports.values().any(|p| p.host == publish.host) {
                let source = std::io::Error::from_raw_os_error(libc::EADDRINUSE);
                let Publish { host: addr, proto, .. } = publish;
                return Err(forward::Error::Bind { addr, proto, source });
            }
            self.last += 1;
            self.ports.insert(self.last, publish);
            Ok(self.last)
        }
        fn remove(&mut self, id: u64) -> Result<(), forward::Error> {
            self.ports.remove(&id).map(drop).ok_or(forward::Error::NoSuchId(id))
        }
        fn list(&self) -> Vec<(u64, Publish)> {
            self.ports.iter().map(|(id, p)| (*id, *p)).collect()
        }
    }

    fn ask(ports: &mut Ports, request: &str) -> Value {
        let config = Config { enable_ipv6: true, ..Config::default() };
        match answer(request.as_bytes(), &config, ports) {
            Answer::Reply(reply) => serde_json::from_slice(&reply).unwrap(),
            Answer::Flows(skip) => json!({ "flows from": skip }),
        }
    }

    #[test]
    fn ports_are_added_listed_and_removed() {
        let mut ports = Ports::default();
        let full = r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"127.0.0.1","host_port":8080,"guest_addr":"10.0.2.100","guest_port":80}}"#;
        assert_eq!(ask(&mut ports, full), json!({"return": {"id": 1}}));
        let short = r#"{"execute":"add_hostfwd","arguments":{"proto":"udp","host_port":53,"guest_addr":"","guest_port":5353}}
"#;
        assert_eq!(ask(&mut ports, short), json!({"return": {"id": 2}}));
        let entries = json!([
            {"id": 1, "proto": "tcp", "host_addr": "127.0.0.1", "host_port": 8080,
             "guest_addr": "10.0.2.100", "guest_port": 80},
            {"id": 2, "proto": "udp", "host_addr": "0.0.0.0", "host_port": 53,
             "guest_addr": "10.0.2.100", "guest_port": 5353},
        ]);
        let list = ask(&mut ports, r#"{"execute":"list_hostfwd"}"#);
        assert_eq!(list, json!({"return": {"entries": entries}, "entries": entries}));
        let remove = r#"{"execute":"remove_hostfwd","arguments":{"id":1}}"#;
        assert_eq!(ask(&mut ports, remove), json!({"return": {}}));
        assert_eq!(ports.ports.len(), 1);
        let again = ask(&mut ports, remove);
        assert_eq!(
            again["error"]["desc"],
            "bad request: remove_hostfwd: no published port has id 1"
        );
    }

    #[test]
    fn addresses_of_either_family_are_published() {
        let mut ports = Ports::default();
        let v6 = r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_addr":"::1","host_port":1,"guest_port":2}}"#;
        ask(&mut ports, v6);
        assert_eq!(ports.ports[&1].guest, "[fd00::100]:2".parse().unwrap());
    }

    #[test]
    fn flows_are_listed_in_parts() {
        let config = Config::default();
        let (path, mut server) = server("flows");
        let mut ports = Ports::default();
        let open = FlowInfo {
            protocol: "tcp",
            state: "open",
            guest: Some("10.0.2.100:4000".parse().unwrap()),
            peer: Some("192.0.2.1:80".parse().unwrap()),
        };
        let flows = vec![open; FLOWS_MAX + 3];
        let longest = SocketAddr::from(([0xffff; 8], 65535));
        let flows_v6 =
            vec![FlowInfo { guest: Some(longest), peer: Some(longest), ..open }; FLOWS_MAX];
        for (skip, flows, count) in
            [(0, &flows, FLOWS_MAX), (FLOWS_MAX, &flows, 3), (0, &flows_v6, FLOWS_MAX)]
        {
            let mut stream = UnixStream::connect(&path).unwrap();
            let id = server.accept().unwrap().0;
            let request = json!({ "execute": "list_flows", "arguments": { "skip": skip } });
            stream.write_all(request.to_string().as_bytes()).unwrap();
            let wanted = server.ready(id, &config, &mut ports).unwrap();
            server.list_flows(&wanted, flows);
            let reply: Value = serde_json::from_str(&reply_of(stream)).unwrap();
            let list = reply["return"]["flows"].as_array().unwrap();
            assert_eq!(
                (list.len(), reply["return"]["total"].as_u64()),
                (count, Some(flows.len() as u64))
            );
        }
        let first = flow(&open);
        assert_eq!(first["guest"], "10.0.2.100:4000");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn bad_requests_say_why() {
        let mut ports = Ports::default();
        let add =
            |arguments: &str| format!(r#"{{"execute":"add_hostfwd","arguments":{arguments}}}"#);
        for (request, reason) in [
            (String::new(), "not JSON"),
            ("{".into(), "not JSON"),
            ("[]".into(), "execute"),
            (r#"{"execute":1}"#.into(), "execute"),
            (r#"{"execute":"x"}"#.into(), "unknown command"),
            (r#"{"execute":"remove_hostfwd"}"#.into(), "no \"id\""),
            (add(r#"{"host_port":1,"guest_port":1}"#), "proto"),
            (add(r#"{"proto":"sctp","host_port":1,"guest_port":1}"#), "sctp"),
            (add(r#"{"proto":"tcp","host_port":0,"guest_port":1}"#), "host_port"),
            (add(r#"{"proto":"tcp","host_port":1,"guest_port":65536}"#), "guest_port"),
            (add(r#"{"proto":"tcp","host_port":1}"#), "guest_port"),
            (add(r#"{"proto":"tcp","host_port":1,"guest_port":1,"host_addr":"x"}"#), "host_addr"),
            (add(r#"{"proto":"tcp","host_port":1,"guest_port":1,"host_addr":7}"#), "host_addr"),
            (format!("{:4096}", "{}"), "4095"),
        ] {
            let reply = ask(&mut ports, &request);
            let why = reply["error"]["desc"].as_str().unwrap_or_default();
            assert!(why.starts_with("bad request: ") && why.contains(reason), "{request}: {reply}");
        }
        assert!(ports.ports.is_empty());
    }

    #[test]
    fn a_port_in_use_is_an_error() {
        let mut ports = Ports::default();
        let add = r#"{"execute":"add_hostfwd","arguments":{"proto":"tcp","host_port":80,"guest_port":80}}"#;
        ask(&mut ports, add);
        let reply = ask(&mut ports, add);
        assert!(reply["error"]["desc"].as_str().unwrap().contains("0.0.0.0:80/tcp"), "{reply}");
    }

    fn server(name: &str) -> (std::path::PathBuf, Server) {
        let path = std::env::temp_dir().join(format!("api-{name}-{}", std::process::id()));
        let listener = listen(&path).unwrap();
        (path, Server::new(listener))
    }

    fn reply_of(mut stream: UnixStream) -> String {
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    #[test]
    fn a_request_in_parts_is_answered_when_it_is_whole_or_ended() {
        let config = Config::default();
        let (path, mut server) = server("parts");
        let mut ports = Ports::default();
        for half_close in [false, true] {
            let mut stream = UnixStream::connect(&path).unwrap();
            let id = server.accept().unwrap().0;
            stream.write_all(br#"{"execute":"#).unwrap();
            assert_eq!(server.ready(id, &config, &mut ports), None);
            assert_eq!(server.clients.len(), 1);
            if half_close {
                stream.shutdown(Shutdown::Write).unwrap();
            } else {
                stream.write_all(br#""list_hostfwd"}"#).unwrap();
            }
            assert_eq!(server.ready(id, &config, &mut ports), None);
            assert!(server.clients.is_empty());
            let expected = if half_close { "error" } else { "entries" };
            assert!(reply_of(stream).contains(expected));
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn silent_and_endless_clients_are_bounded() {
        let config = Config::default();
        let (path, mut server) = server("bounds");
        let mut ports = Ports::default();
        let streams: Vec<_> = (0..CLIENTS_MAX + 3)
            .map(|_| {
                let stream = UnixStream::connect(&path).unwrap();
                server.accept().unwrap();
                stream
            })
            .collect();
        assert_eq!(server.clients.len(), CLIENTS_MAX);
        drop(streams);
        let mut stream = UnixStream::connect(&path).unwrap();
        let id = server.accept().unwrap().0;
        stream.write_all(&[b'['; REQUEST_MAX + 1]).unwrap();
        assert_eq!(server.ready(id, &config, &mut ports), None);
        assert!(reply_of(stream).contains("4095"));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_dead_socket_is_replaced_a_live_one_or_a_file_is_not() {
        let (path, server) = server("stale");
        let error = listen(&path).unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
        drop(server);
        listen(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(path).unwrap();
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_get_a_json_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let Answer::Reply(reply) = answer(&bytes, &Config::default(), &mut Ports::default())
            else { return Ok(()) };
            prop_assert!(serde_json::from_slice::<Value>(&reply).is_ok());
        }

        #[test]
        fn arbitrary_arguments_are_answered(
            command in prop::sample::select(vec!["add_hostfwd", "remove_hostfwd", "list_hostfwd", "list_flows", "x"]),
            arguments in prop::collection::vec((
                prop::sample::select(vec!["proto", "host_addr", "host_port", "guest_addr", "guest_port", "id", "skip"]),
                prop_oneof![
                    any::<i64>().prop_map(Value::from),
                    any::<f64>().prop_map(Value::from),
                    any::<u16>().prop_map(Value::from),
                    prop::sample::select(vec!["tcp", "udp6", "", "::", "127.0.0.1", "10.0.2.100", "x"]).prop_map(Value::from),
                    Just(Value::Null),
                    Just(json!([])),
                    any::<bool>().prop_map(Value::from),
                ],
            ), 0..6),
        ) {
            let arguments: serde_json::Map<_, _> =
                arguments.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            let mut ports = Ports::default();
            let request = json!({ "execute": command, "arguments": arguments }).to_string();
            let reply = ask(&mut ports, &request);
            let known = reply.get("error").is_some() || reply.get("return").is_some()
                || reply.get("flows from").is_some();
            prop_assert!(known, "{}", reply);
            // A port is there exactly if it was said so.
            let added = reply["return"].get("id").is_some();
            prop_assert_eq!(added, ports.ports.len() == 1);
            for port in ports.ports.values() {
                prop_assert!(port.host.port() > 0 && port.guest.port() > 0);
                prop_assert!(!port.guest.ip().is_unspecified());
            }
        }
    }
}
