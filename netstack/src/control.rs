//! slirp4netns' API socket: ports published and withdrawn while the network runs; and,
//! beside its commands, `list_flows`.
//!
//! # Theory of operation
//!
//! One request a connection ([`crate::clients`]): one JSON object, one reply, closed. A
//! request is complete when it parses, when the client shuts its sending side down, or
//! when it has grown too long; so both clients that half-close and clients that wait
//! are served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::{Value, json};

use crate::clients::Request;
use crate::config::{Config, Proto, Publish};
use crate::forward::Forwards;
use crate::stack::report::FlowInfo;

/// Longest request, in bytes.
pub const REQUEST_MAX: usize = 4095;
/// Flows in one reply at most: it must fit into a socket's buffer.
const FLOWS_MAX: usize = 500;

/// Whether it can be answered.
#[must_use]
pub fn is_whole(request: Request<'_>) -> bool {
    // Incomplete JSON is told from wrong JSON only at its end.
    request.ended
        || request.bytes.len() > REQUEST_MAX
        || serde_json::from_slice::<Value>(request.bytes).is_ok()
}

/// The answer to who asked for flows, without `skip` at the beginning.
#[must_use]
pub fn flows(flows: &[FlowInfo], skip: usize) -> Vec<u8> {
    let part: Vec<Value> = flows.iter().skip(skip).take(FLOWS_MAX).map(flow).collect();
    let reply = json!({ "return": { "flows": part, "total": flows.len() } });
    reply.to_string().into_bytes()
}

fn flow(flow: &FlowInfo) -> Value {
    json!({
        "proto": flow.protocol,
        "state": flow.state,
        "guest": flow.guest.map(|guest| guest.to_string()),
        "peer": flow.peer.map(|peer| peer.to_string()),
    })
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
        let mut ports = Ports::default();
        let asked = r#"{"execute":"list_flows","arguments":{"skip":500}}"#;
        assert_eq!(ask(&mut ports, asked), json!({ "flows from": 500 }));
        let open = FlowInfo {
            protocol: "tcp",
            state: "open",
            guest: Some("10.0.2.100:4000".parse().unwrap()),
            peer: Some("192.0.2.1:80".parse().unwrap()),
        };
        let all = vec![open; FLOWS_MAX + 3];
        for (skip, count) in [(0, FLOWS_MAX), (FLOWS_MAX, 3), (all.len(), 0), (usize::MAX, 0)] {
            let reply: Value = serde_json::from_slice(&flows(&all, skip)).unwrap();
            let list = reply["return"]["flows"].as_array().unwrap();
            let total = reply["return"]["total"].as_u64();
            assert_eq!((list.len(), total), (count, Some(all.len() as u64)));
        }
        assert_eq!(flow(&open)["guest"], "10.0.2.100:4000");
        // The longest fits into a UNIX socket's buffer (wmem_default).
        let longest = SocketAddr::from(([0xffff; 8], 65535));
        let v6 = FlowInfo { guest: Some(longest), peer: Some(longest), ..open };
        assert!(flows(&vec![v6; FLOWS_MAX], 0).len() < 100_000);
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

    #[test]
    fn a_request_is_whole_when_it_parses_ends_or_is_too_long() {
        let request = |bytes, ended| Request { bytes, ended };
        assert!(!is_whole(request(br#"{"execute":"#, false)));
        assert!(is_whole(request(br#"{"execute":"#, true)));
        assert!(is_whole(request(br#"{"execute":"list_hostfwd"}"#, false)));
        assert!(!is_whole(request(&[b'['; REQUEST_MAX], false)));
        assert!(is_whole(request(&[b'['; REQUEST_MAX + 1], false)));
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
