//! TLS both ways, with certificates by `ovs-pki`.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

use ofp::Body;
use rustls::{ServerConnection, StreamOwned};
use telemetry::tls::{Tls, TlsFiles};
use vswitch::bridge::{BridgeConfig, FailMode};
use vswitch::config::OpenFlowAddress;
use vswitch::openflow::AgentConfig;

use crate::client::Client;
use crate::data_path::{PATIENCE, Switch, wait_for};

const REMEDY: &str = "it is in the package openvswitch-common (Debian, Ubuntu): install that";

fn ovs_pki(directory: &Path, arguments: &[&str]) {
    let output = Command::new("ovs-pki")
        .arg(format!("--dir={}", directory.join("pki").display()))
        .arg(format!("--log={}", directory.join("log").display()))
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap_or_else(|error| panic!("ovs-pki: {error}; {REMEDY}"));
    assert!(output.status.success(), "ovs-pki {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Two authorities as `ovs-pki init` makes them: one signs switches, the other controllers.
struct Pki(tempfile::TempDir);

impl Pki {
    fn new() -> Pki {
        let directory = tempfile::tempdir().expect("a directory");
        ovs_pki(directory.path(), &["init"]);
        ovs_pki(directory.path(), &["req+sign", "sw", "switch"]);
        ovs_pki(directory.path(), &["req+sign", "ctl", "controller"]);
        Pki(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The files of one end and the authority of the other.
    fn files(&self, name: &str, peers: &str) -> TlsFiles {
        TlsFiles {
            key: self.path(&format!("{name}-privkey.pem")),
            cert: self.path(&format!("{name}-cert.pem")),
            ca: self.path(&format!("pki/{peers}ca/cacert.pem")),
        }
    }

    fn switch(&self) -> Tls {
        Tls::load(&self.files("sw", "controller")).expect("what ovs-pki made is good")
    }

    /// `ovs-ofctl show` by a controller that this PKI signed.
    fn ofctl(&self, more: &[&str], target: &str) -> (bool, String) {
        let TlsFiles { key, cert, ca } = self.files("ctl", "switch");
        let output = Command::new("ovs-ofctl")
            .args(["-O", "OpenFlow13", "-t", "10"])
            .arg(format!("--private-key={}", key.display()))
            .arg(format!("--certificate={}", cert.display()))
            .arg(format!("--ca-cert={}", ca.display()))
            .args(more)
            .args(["show", target])
            .output()
            .unwrap_or_else(|error| panic!("ovs-ofctl: {error}; {REMEDY}"));
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }
}

fn failures(switch: &Switch) -> u64 {
    let agent = switch.agent.as_ref().expect("running");
    agent.stats().handshakes_failed.load(Ordering::Relaxed)
}

fn start(config: AgentConfig) -> Switch {
    Switch::start(BridgeConfig { fail_mode: FailMode::Secure, ..BridgeConfig::default() }, config)
}

#[test]
fn certificates_of_ovs_pki_are_taken_and_those_of_others_refused() {
    let (ours, others) = (Pki::new(), Pki::new());
    let loopback = "127.0.0.1:0".parse().expect("an address");
    let listeners = vec![OpenFlowAddress::Tls(loopback)];
    let switch = start(AgentConfig { listeners, tls: Some(ours.switch()), ..AgentConfig::default() });
    let listening = switch.agent.as_ref().expect("running").listening();
    let target = listening.iter().find(|address| matches!(address, OpenFlowAddress::Tls(_)));
    let target = target.expect("it listens").to_string();
    // Without the option it takes the newest that both know.
    for more in [&["--ssl-protocols=TLSv1.2"][..], &[]] {
        let (good, text) = ours.ofctl(more, &target);
        assert!(good && text.contains("OFPT_FEATURES_REPLY"), "{more:?}: {text}");
    }
    assert_eq!(failures(&switch), 0);
    let (good, text) = others.ofctl(&[], &target);
    assert!(!good, "a stranger was let in: {text}");
    wait_for("the handshake is counted", || failures(&switch) > 0);
    // Somebody who speaks no TLS at all harms nobody.
    assert!(!ours.ofctl(&[], &target.replace("ssl:", "tcp:")).0);
    assert!(ours.ofctl(&[], &target).0);

    // The other way round: the switch calls.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let controllers = vec![OpenFlowAddress::Tls(listener.local_addr().expect("bound"))];
    let switch = start(AgentConfig { controllers, tls: Some(ours.switch()), ..AgentConfig::default() });
    let accept = |pki: &Pki| {
        let server = Tls::load(&pki.files("ctl", "switch")).expect("good files").server;
        let (stream, _) = listener.accept().expect("the switch calls");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        StreamOwned::new(ServerConnection::new(server).expect("a server"), stream)
    };
    // A controller that others signed: the switch hangs up, and calls again.
    let mut stranger = accept(&others);
    let refused = std::io::Read::read(&mut stranger, &mut [0]).expect_err("the switch sends nothing");
    // Authorities that `ovs-pki` made within the same second have the same name, and then it is the signature that is wrong.
    let said = ["UnknownCA", "DecryptError"].iter().any(|alert| refused.to_string().contains(alert));
    assert!(said, "{refused}");
    wait_for("the handshake is counted", || failures(&switch) > 0);
    drop(stranger);
    let mut client = Client::over(accept(&ours));
    assert!(matches!(client.ask(Body::FeaturesRequest), Body::FeaturesReply(_)));
    client.barrier();
}
