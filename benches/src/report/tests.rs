use super::markup::width;
use super::*;
use crate::rank::unit::Random;
use crate::record::unit::record;
use crate::record::{Better, Candidate, Cell, Head, Missing, Program, Role, Sample};

const LONG: &str = "netstack-with-a-name-longer-than-anybody-would-give-a-build-1.2.3-rc1";
const EVIL: &str = "<script>alert('1')</script> & \"co\"";

/// Everything a report may meet: many cells, long names, failures, cells that are
/// not possible, zeros, huge and tiny values, missing figures.
fn large(long_names: bool) -> Record {
    let mut random = Random(3);
    let mut all = record("net/none", &[], &[]);
    all.suites.clear();
    all.commands = vec!["cargo xtask bench all --peers all".into()];
    all.machine.cpu = "Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz".into();
    all.machine.commit = "0123456789abcdef0123456789abcdef01234567".into();
    for (name, version) in [("netstack", "netstack 0.1.0"), ("slirp4netns", "slirp4netns 1.2.0")] {
        all.programs.push(Program {
            name: name.into(),
            path: format!("/usr/bin/{name}"),
            version: version.into(),
        });
    }
    all.missing.push(Missing { name: "crun".into(), install: "apt-get install crun".into() });
    all.missing.push(Missing { name: EVIL.into(), install: EVIL.into() });

    let mut net = vec![("netstack", Role::Ours, 12.0)];
    if long_names {
        net.push((LONG, Role::Ours, 11.0));
    }
    net.extend([
        ("slirp4netns", Role::Peer, 1.5),
        ("pasta", Role::Peer, 5.0),
        ("veth", Role::Limit, 22.0),
        ("loopback", Role::Limit, 30.0),
    ]);
    for direction in ["from", "to"] {
        for (mtu, streams, family) in [1500, 9000, 65_520]
            .into_iter()
            .flat_map(|mtu| [1, 8, 64].map(|streams| (mtu, streams, "v4")))
            .chain([1500, 9000, 65_520].map(|mtu| (mtu, 1, "v6")))
        {
            let title =
                format!("TCP {direction} the guest, MTU {mtu}, {streams} streams, IP{family}");
            let id = format!("net/tcp-{direction}/mtu{mtu}/streams{streams}/{family}");
            let params = [
                ("mtu", mtu.to_string()),
                ("streams", streams.to_string()),
                ("family", family.to_owned()),
            ];
            let faster = (f64::from(mtu) / 1500.0).powf(0.3);
            let extra =
                [("backend_cpu_s_per_gb", 0.6), ("peak_rss_mib", 24.0), ("retransmits", 3.0)];
            all.add(cell(&mut random, &id, &title, "Gbit/s", &params, &net, faster, &extra));
        }
        for size in [64, 1400, 16_384] {
            let title = format!("UDP {direction} the guest, {size} bytes, IPv4");
            let id = format!("net/udp-{direction}/size{size}/v4");
            let params = [("size", size.to_string())];
            let faster = f64::from(size) / 2000.0;
            all.add(cell(&mut random, &id, &title, "Gbit/s", &params, &net, faster, &[]));
        }
    }
    let latency = [("p50_us", 24.0), ("p99_us", 90.0), ("p999_us", 700.0), ("peak_rss_mib", 9.0)];
    for (word, title) in [
        ("rr/streams1/v4", "TCP round trips of 64 bytes, 1 at once, IPv4"),
        ("rr/streams16/v4", "TCP round trips of 64 bytes, 16 at once, IPv4"),
        ("udp-rr/streams1/v4", "UDP round trips of 64 bytes, 1 at once, IPv4"),
        ("http/streams16/v4", "HTTP requests of 1 KiB, keep-alive, 16 at once, IPv4"),
        ("connections/streams16/v4", "TCP connections, one request each, 16 at once, IPv4"),
        ("published/rr/streams1", "Published port: TCP round trips of 64 bytes, 1 at once"),
        ("published/http/streams16", "Published port: HTTP requests of 1 KiB, 16 at once"),
    ] {
        let id = format!("net/{word}");
        all.add(cell(&mut random, &id, title, "1/s", &[], &net, 3000.0, &latency));
    }
    for way in ["to", "from"] {
        let id = format!("net/published/tcp-{way}");
        let title = format!("Published port: TCP {way} a server in the guest");
        all.add(cell(&mut random, &id, &title, "Gbit/s", &[], &net, 1.0, &[]));
    }
    let idle = "CPU time of a backend with no traffic";
    all.add(cell(&mut random, "net/idle", idle, "ms/s", &[], &net[..2], 0.0, &[]));
    all.add(cell(&mut random, "net/huge", "A huge figure", "B", &[], &net, 1e12, &[]));
    all.add(cell(&mut random, "net/tiny", "A tiny figure", "s", &[], &net, 1e-9, &[]));

    let fs = [
        ("overlayfs-fuse", Role::Ours, 1.0),
        ("fuse-overlayfs", Role::Peer, 0.7),
        ("unionfs-fuse", Role::Peer, 0.2),
        ("kernel overlay", Role::Limit, 8.0),
        ("plain directory", Role::Limit, 9.0),
    ];
    for (word, title, unit, usual) in [
        ("create", "Creating files", "1/s", 9000.0),
        ("stat", "Looking at files", "1/s", 90_000.0),
        ("seq-read", "Reading in sequence", "MB/s", 1800.0),
    ] {
        for layers in [1, 6, 100] {
            for processes in [1, 4] {
                let title = format!("{title}, {layers} layers, {processes} processes");
                let id = format!("fs/{word}/layers{layers}/processes{processes}");
                let params = [("layers", layers.to_string()), ("processes", processes.to_string())];
                let extra = [("backend_cpu_us_per_op", 40.0), ("peak_rss_mib", 30.0)];
                all.add(cell(&mut random, &id, &title, unit, &params, &fs, usual, &extra));
            }
        }
    }

    let cells = &mut all.suites[0].cells;
    cells[1].candidates[1].failure = Some(format!("wrong byte at 4096\n{EVIL}"));
    cells[2].candidates[0].failure = Some("no end within 30 s".into());
    cells[4].impossible = Some(format!("the kernel has no netem, {EVIL}: modprobe sch_netem"));
    let http = cells.iter_mut().find(|cell| cell.head.id.contains("/http/")).unwrap();
    http.candidates[1].samples.clear();
    http.head.note = Some("the server sends 1 KiB".into());
    // One round far away from the others.
    cells[6].candidates[2].samples[1].value *= 40.0;
    all
}

#[expect(clippy::too_many_arguments, reason = "a table of cells, a line each")]
fn cell(
    random: &mut Random,
    id: &str,
    title: &str,
    unit: &str,
    params: &[(&str, String)],
    candidates: &[(&str, Role, f64)],
    usual: f64,
    extra: &[(&str, f64)],
) -> Cell {
    let candidates = candidates.iter().map(|&(name, role, speed)| Candidate {
        name: name.to_owned(),
        role,
        command: format!("{name} --option {EVIL}"),
        samples: (0..5)
            .map(|_| {
                let sample = Sample::of(usual * speed * random.skewed(0.06));
                let some = extra.iter().filter(|_| role != Role::Limit);
                some.fold(sample, |sample, (name, figure)| {
                    sample.with(name, figure / speed * random.skewed(0.1))
                })
            })
            .collect(),
        failure: None,
    });
    let better = if unit == "ms/s" { Better::Lower } else { Better::Higher };
    Cell {
        head: Head {
            id: id.to_owned(),
            title: title.to_owned(),
            unit: unit.to_owned(),
            better,
            params: params.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
            note: None,
        },
        impossible: None,
        warm_up: 1,
        candidates: candidates.collect(),
    }
}

/// Text elements of an SVG: left, top, right, bottom, text; in the coordinates of
/// the element they stand in.
fn texts(svg: &str) -> Vec<(f64, f64, f64, f64, String)> {
    let mut found = Vec::new();
    for piece in svg.split("<text ").skip(1) {
        let (head, rest) = piece.split_once('>').unwrap();
        let text = rest.split("</text>").next().unwrap();
        let text = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")]
            .into_iter()
            .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain));
        let attribute = |name: &str| {
            let value = head.split(&format!("{name}=\"")).nth(1).unwrap();
            value.split('"').next().unwrap().to_owned()
        };
        let number = |name: &str| attribute(name).parse::<f64>().unwrap();
        let (x, y, size) = (number("x"), number("y"), number("font-size"));
        let wide = width(&text, size);
        let left = match attribute("text-anchor").as_str() {
            "start" => x,
            "middle" => x - wide / 2.0,
            _ => x - wide,
        };
        found.push((left, y - size * 0.8, left + wide, y + size * 0.2, text));
    }
    found
}

#[test]
fn no_text_of_a_chart_is_cut_or_lies_on_another() {
    for long_names in [false, true] {
        let record = large(long_names);
        let mut panels = 0;
        for suite in &record.suites {
            let bundles = chart::bundles(suite);
            let colours = Colours::of(suite);
            let mut all = charts(&bundles, &colours);
            all.push(chart::overview(&bundles, &colours));
            for svg in all.iter().flat_map(draw::panels) {
                panels += 1;
                let texts = texts(&svg);
                assert!(!texts.is_empty(), "{svg}");
                for (at, a) in texts.iter().enumerate() {
                    let inside = a.0 >= -0.1 && a.2 <= draw::WIDTH + 0.1 && a.1 >= 0.0;
                    assert!(inside, "{} is cut: {a:?}", a.4);
                    for b in &texts[..at] {
                        let apart = a.2 <= b.0 || b.2 <= a.0 || a.3 <= b.1 || b.3 <= a.1;
                        assert!(apart, "{} lies on {}: {a:?} {b:?}", a.4, b.4);
                    }
                }
            }
        }
        assert!(panels > 30, "{panels} panels");
    }
}

/// Start and end tags in turn; everything else is as it was written.
fn check_balance(markup: &str) {
    let mut open = Vec::new();
    for piece in markup.split('<').skip(1) {
        let tag = piece.split('>').next().unwrap();
        if tag.starts_with('!') || tag.ends_with('/') {
            continue;
        }
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None => open.push(tag.split_whitespace().next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn the_report_needs_nothing_else_and_hides_nothing() {
    let record = large(true);
    let html = html(&record);
    check_balance(&html);
    for word in ["<script", "url(", "@import", "src=", "http:", "https:"] {
        assert!(!html.contains(word), "{word}");
    }
    assert!(html.contains("&lt;script&gt;alert(&#39;1&#39;)"));
    for word in [
        "failed after 5 rounds: wrong byte at 4096",
        "no end within 30 s",
        "not possible here: the kernel has no netem",
        "not measured",
        "apt-get install crun",
        "Note: the server sends 1 KiB.",
        &record.machine.commit,
        &record.machine.cpu,
        "slirp4netns 1.2.0",
        "cargo xtask bench all --peers all",
        LONG,
    ] {
        assert!(html.contains(word), "{word} is not in the report");
    }
    for cell in record.suites.iter().flat_map(|suite| &suite.cells) {
        assert!(html.contains(&format!("<code>{}</code>", cell.head.id)), "{}", cell.head.id);
    }
    // For a look at it: see README.md.
    if let Some(dir) = std::env::var_os("BENCH_FIXTURE_DIR") {
        std::fs::write(std::path::Path::new(&dir).join("report.html"), html).unwrap();
        std::fs::write(std::path::Path::new(&dir).join("short.html"), super::html(&large(false)))
            .unwrap();
        for (name, svg) in pictures(&record) {
            std::fs::write(std::path::Path::new(&dir).join(name), svg).unwrap();
        }
    }
}

#[test]
fn many_cells_are_few_charts() {
    let record = large(false);
    let bundles = chart::bundles(&record.suites[0]);
    let titles: Vec<_> = bundles.iter().map(|bundle| bundle.title.as_str()).collect();
    assert_eq!(
        titles,
        [
            "TCP from the guest",
            "UDP from the guest, IPv4",
            "TCP to the guest",
            "UDP to the guest, IPv4",
            "TCP round trips of 64 bytes, IPv4",
            "Further questions, per second",
            "Published port, per second",
            "Published port, Gbit/s",
            "CPU time of a backend with no traffic",
            "A huge figure",
            "A tiny figure",
        ]
    );
    let cells: usize = bundles.iter().map(|bundle| bundle.cells.len()).sum();
    assert_eq!(cells, record.suites[0].cells.len());

    let tcp = chart::values(&bundles[0], &Colours::of(&record.suites[0]));
    let panels: Vec<_> = tcp.panels.iter().map(|panel| panel.title.as_deref().unwrap()).collect();
    assert_eq!(panels, ["MTU 1500", "MTU 9000", "MTU 65520"]);
    let labels: Vec<_> =
        tcp.panels[0].groups.iter().map(|group| group.title.as_deref().unwrap()).collect();
    assert_eq!(
        labels,
        ["1 streams, IPv4", "8 streams, IPv4", "64 streams, IPv4", "1 streams, IPv6"]
    );
}

#[test]
fn pictures_stand_alone() {
    let pictures = pictures(&large(false));
    for (at, (name, svg)) in pictures.iter().enumerate() {
        check_balance(svg);
        assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""), "{name}");
        assert!(pictures[..at].iter().all(|(other, _)| other != name), "{name} twice");
        assert!(svg.contains("prefers-color-scheme: dark"), "{name}");
    }
    let names: Vec<_> = pictures.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["net.svg", "fs.svg"]);
}

#[test]
fn ratios_are_geometric_means_over_cells() {
    let mut record = record("net/a", &[8.0, 8.0], &[2.0, 2.0]);
    let other = crate::record::unit::record("net/b", &[1.0, 3.0], &[2.0, 2.0]);
    record = record.merge(other).unwrap();
    let ratios = chart::ratios(record.suites[0].cells.iter());
    assert_eq!(ratios.len(), 1);
    let found = ratios[0].1;
    assert_eq!((found.range.min, found.range.median, found.range.max), (1.0, 2.0, 4.0));
    assert_eq!((found.cells, found.ahead, found.behind), (2, 1, 0));
}

#[test]
fn who_has_failed_is_in_the_summary_and_the_overview() {
    let mut record = record("net/a", &[1.0, 3.0], &[2.0, 2.0]);
    for candidate in &mut record.suites[0].cells[0].candidates {
        candidate.failure = Some("stalled".into());
    }
    let cells = &record.suites[0].cells;
    let failed: Vec<_> =
        chart::failures(cells.iter()).iter().map(|(c, count)| (c.name.clone(), *count)).collect();
    assert_eq!(failed, [("ours".to_owned(), 1), ("limit".to_owned(), 1)]);
    let svg = &pictures(&record)[0].1;
    assert_eq!(svg.matches("✕ failed").count(), 2, "{svg}");
    assert!(html(&record).contains("<td class=\"bad\">1</td>"));
}

#[test]
fn who_has_failed_in_some_cells_only_is_in_the_overview_twice() {
    let mut record = record("net/a/one", &[1.0, 3.0], &[2.0, 2.0]);
    let mut second = record.suites[0].cells[0].clone();
    second.head.id = "net/a/two".into();
    second.candidates[1].samples.clear();
    second.candidates[1].failure = Some("stalled".into());
    record.suites[0].cells.push(second);
    let svg = &pictures(&record)[0].1;
    assert_eq!(svg.matches("✕ failed").count(), 1, "{svg}");
    assert!(svg.contains("limit, 1 of 2"), "{svg}");
}

#[test]
fn an_empty_result_has_a_report() {
    let mut empty = record("net/a", &[], &[]);
    check_balance(&html(&empty));
    empty.suites.clear();
    check_balance(&html(&empty));
    assert!(pictures(&empty).is_empty());
}
