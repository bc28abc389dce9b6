//! A switch in this process, with its workers, sockets and state, and frames to send through it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use telemetry::Registry;
use telemetry::state::StateDir;
use vswitch::bridge::{Bridge, BridgeConfig};
use vswitch::config::PacketInLimits;
use vswitch::data_path::{DataPath, DataPathConfig};
use vswitch::fdb::Fdb;
use vswitch::model::{Clock, PacketInReceiver, packet_in_queue};
use vswitch::port_spec::{PortView, read_add};
use vswitch::switch::Switch;

use crate::net_frontend::{NetFrontend, NetOptions};

/// How long a frame may take through the switch.
pub use crate::frontend::PATIENCE;
/// Time in which a frame that must not come would have come: sent before others that did come, so this is short.
pub const QUIET: Duration = Duration::from_millis(30);

/// A switch that learns and forwards. Dropping it ends it.
pub struct TestSwitch {
    /// Ports.
    pub switch: Arc<Switch>,
    /// What is counted.
    pub registry: Registry,
    /// Packets for controllers.
    pub packet_ins: PacketInReceiver,
    data_path: Arc<DataPath>,
    dir: Option<tempfile::TempDir>,
}

impl TestSwitch {
    /// A switch with workers on these cores; one that is not pinned if there are none.
    pub fn new(cores: &[usize]) -> TestSwitch {
        TestSwitch::at(tempfile::tempdir().expect("a directory"), cores)
    }

    fn at(dir: tempfile::TempDir, cores: &[usize]) -> TestSwitch {
        virtq::install_sigbus_guard();
        let registry = Registry::new();
        let clock = Clock::start();
        let fdb = Arc::new(Fdb::new(1024, 300, 1));
        let (sender, packet_ins) = packet_in_queue();
        let config = DataPathConfig {
            cores: cores.to_vec(),
            spin_us: 20,
            seed: 1,
            packet_ins_per_second: PacketInLimits::default().port,
        };
        let data_path = DataPath::start(&config, &registry, clock, &fdb, &sender).expect("workers");
        let bridge = Arc::new(Bridge::new(BridgeConfig::default(), data_path.clone(), fdb, clock));
        let state = StateDir::open(&dir.path().join("state")).expect("the state directory");
        let (run_dir, path) = (dir.path().to_path_buf(), data_path.clone());
        let switch = Arc::new(Switch::empty(bridge, path, run_dir, registry.clone(), state));
        switch.restore().expect("the kept ports");
        TestSwitch { switch, registry, packet_ins, data_path, dir: Some(dir) }
    }

    /// Stops the switch and starts another one with what it kept.
    pub fn restart(mut self, cores: &[usize]) -> TestSwitch {
        let dir = self.dir.take().expect("there until now");
        drop(self);
        TestSwitch::at(dir, cores)
    }

    /// Adds a port: the body of a request, without the name.
    pub fn add(&self, name: &str, mut body: Value) -> PortView {
        body["name"] = json!(name);
        self.switch.add(read_add(body).expect("a good port")).expect("a port")
    }

    /// Adds a vhost-user port and attaches a driver.
    pub fn guest(&self, name: &str, mut body: Value, options: NetOptions) -> NetFrontend {
        body["vhost_user"] = json!(true);
        self.add(name, body);
        self.attach(name, options)
    }

    /// Attaches a driver to a port.
    pub fn attach(&self, name: &str, options: NetOptions) -> NetFrontend {
        NetFrontend::connect(self.socket(name), options).expect("a driver")
    }

    /// The socket of a port.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.as_ref().expect("there until restarted").path().join(format!("{name}.sock"))
    }

    /// A sample of the metrics, 0 if it is not there: `name{labels}` as it is written.
    pub fn metric(&self, sample: &str) -> f64 {
        let text = self.registry.encode();
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// How often frames from (`rx`) or to (`tx`) a port were dropped for a reason.
    pub fn drops(&self, port: &str, direction: &str, reason: &str) -> f64 {
        self.metric(&format!(
            "sluice_port_drops_total{{direction=\"{direction}\",port=\"{port}\",reason=\"{reason}\"}}"
        ))
    }

    /// Waits until a sample has a value: a frame may be seen a moment before it is counted.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn expect_metric(&self, sample: &str, value: f64) {
        let reached = crate::holds_within(PATIENCE, || self.metric(sample) == value);
        assert!(reached, "{sample} is {} instead of {value}", self.metric(sample));
    }

    /// The same for what [`TestSwitch::drops`] tells.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn expect_drops(&self, port: &str, direction: &str, reason: &str, count: f64) {
        let reached = crate::holds_within(PATIENCE, || self.drops(port, direction, reason) == count);
        let dropped = self.drops(port, direction, reason);
        assert!(reached, "{port} {direction} {reason}: {dropped} instead of {count}");
    }
}

impl Drop for TestSwitch {
    fn drop(&mut self) {
        self.switch.close();
        self.data_path.stop();
    }
}

/// The address of guest number `n`.
pub fn mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

/// ff:ff:ff:ff:ff:ff.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// A frame with VLAN tags (TCIs) and a payload that tells frames apart; at least 60 bytes.
pub fn frame(to: [u8; 6], from: [u8; 6], tags: &[u16], payload: &[u8]) -> Vec<u8> {
    let mut frame = [to, from].concat();
    for tag in tags {
        frame.extend([0x81, 0x00]);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend([0x88, 0xb5]);
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// The next frame of a driver.
///
/// # Panics
/// There is none within [`PATIENCE`].
pub fn expect_frame(net: &mut NetFrontend) -> Vec<u8> {
    net.recv(PATIENCE).expect("a frame")
}

/// Panics if a driver has a frame.
pub fn expect_nothing(net: &mut NetFrontend) {
    if let Some(frame) = net.recv(QUIET) {
        panic!("a frame that must not come: {frame:02x?}");
    }
}
