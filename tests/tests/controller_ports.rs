//! What happens to ports is told as it happens, in its order: links of the host that go and come back, guests that attach
//! and leave, ports that are taken away.

#![allow(clippy::print_stdout, reason = "figures for who asks for them")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::{Value, json};
use tests::fabric::{Fabric, Make, PATIENCE, REST};
use tests::net_frontend::{NetFrontend, NetOptions};
use xtask::lab::netns::ip;

/// The controller's stream of events.
struct Events {
    lines: BufReader<TcpStream>,
    /// What was heard last of each port.
    last: std::collections::BTreeMap<String, String>,
}

impl Events {
    fn listen(fabric: &Fabric) -> Events {
        let mut stream = fabric.namespace().enter(|| TcpStream::connect(REST)).unwrap().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET /v1/events HTTP/1.1\r\nhost: {REST}\r\n\r\n").unwrap();
        let mut events = Events { lines: BufReader::new(stream), last: Default::default() };
        // The head of the answer is there: nothing is missed from now on.
        while !events.line().is_empty() {}
        events
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).expect("an event in time") > 0, "the stream goes on");
        line.trim_end().to_owned()
    }

    /// The next event that says something new about a port: its switch, name and state.
    fn next_of_ports(&mut self) -> (u64, String, String) {
        loop {
            if self.line() != "event: port" {
                continue;
            }
            let line = self.line();
            let data = line.strip_prefix("data: ").unwrap_or_else(|| panic!("no data: {line}"));
            let value: Value = serde_json::from_str(data).unwrap();
            let text = |key: &str| value[key].as_str().unwrap().to_owned();
            let (name, state) = (text("name"), text("state"));
            // Switches may say again what is known.
            if self.last.insert(name.clone(), state.clone()).as_ref() != Some(&state) {
                return (value["dpid"].as_u64().unwrap(), name, state);
            }
        }
    }

    /// Does something and hears that, and nothing else, of this port.
    #[track_caller]
    fn after<T>(&mut self, what: &str, port: &str, state: &str, act: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let done = act();
        let heard = self.next_of_ports();
        println!("{what}: heard after {:.1} ms", begin.elapsed().as_secs_f64() * 1e3);
        assert_eq!(heard, (1, port.to_owned(), state.to_owned()), "{what}");
        done
    }
}

fn links(make: Make) {
    let mut fabric = Fabric::new(make);
    fabric.add_switch(1);
    let hosts = [1, 2].map(|n| fabric.add_host(1, n));
    fabric.settled(1);
    let ports = [1, 2].map(|port| json!({"dpid": 1, "port": port}));
    fabric.apply("/v1/networks/red", &json!({"vlan": 10, "ports": ports}));
    let mut events = Events::listen(&fabric);
    for name in ["h1", "h2"] {
        events.last.insert(name.into(), "up".into());
    }
    let link = |n: usize, state: &str| {
        ip(&format!("-n {} link set eth0 {state}", hosts[n - 1].namespace.name)).unwrap();
    };
    for _ in 0..5 {
        events.after("a link goes down", "h1", "down", || link(1, "down"));
        events.after("another", "h2", "down", || link(2, "down"));
        events.after("a link comes up", "h1", "up", || link(1, "up"));
        events.after("another comes up", "h2", "up", || link(2, "up"));
    }
    if make == Make::Sluice {
        let socket = events.after("a port is made", "v20", "down", || fabric.add_guest_port(1, 20));
        for _ in 0..5 {
            let attach = || NetFrontend::connect(&socket, NetOptions::default()).unwrap();
            let guest = events.after("a guest attaches", "v20", "up", attach);
            events.after("a guest leaves", "v20", "down", || drop(guest));
        }
        events.after("a port is taken away", "v20", "gone", || fabric.remove_port(1, "v20"));
    }
    events.after("a port goes", "h2", "gone", || fabric.remove_port(1, "h2"));
    let named = fabric.get("/v1/switches/1/ports").to_string();
    assert!(named.contains("h1") && !named.contains("h2"), "{named}");
}

#[test]
fn ports_of_open_vswitch() {
    links(Make::OpenVSwitch);
}

#[test]
fn ports_of_our_switch() {
    links(Make::Sluice);
}
