//! The ports of the switch: made, shown, kept over restarts.
//!
//! A change is checked as a whole, carried out step by step, and undone when a step fails; only then it is kept.
//! Nothing that waits for a frontend's thread happens under a lock that such a thread may want.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use packet::MacAddr;
use reactor::netdev;
use serde::{Deserialize, Serialize};
use telemetry::check::Errors;
use telemetry::state::{StateDir, StateError};
use telemetry::{Problem, Registry};
use vhost_session::{Endpoint, Refused, SessionMetrics, SocketRole, serve};

use crate::bridge::Bridge;
use crate::data_path::{DataPath, HostDevice, HostDeviceKind};
use crate::model::{PORT_NO_LAST, PortConfig, PortNo};
use crate::port::backend::{LinkObserver, NetPort};
use crate::port::device::Device;
use crate::port_spec::{PortCountersView, PortKind, PortSpec, PortView};

/// File of the state directory that holds the ports.
const STATE_FILE: &str = "ports.json";
/// Permission bits of a port's socket unless given.
const SOCKET_MODE: u32 = 0o660;
/// First and longest pause between attempts to reach a VMM that listens.
const DIAL_RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Speed in port descriptions, kbit/s: there is no wire that would limit it.
const SPEED_KBPS: u32 = 10_000_000;

/// The file, as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: u32,
    ports: Vec<PortSpec>,
}

const VERSION: u32 = 1;

/// Why the kept ports cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The file was not written by this program, or by a newer one.
    #[error("{path} is not a list of ports of this version; move it away to start without ports: {detail}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

/// One port and what serves it.
struct Port {
    spec: PortSpec,
    number: PortNo,
    endpoint: Option<Endpoint>,
    failure: Option<String>,
}

/// Tells the bridge of links; returns when the workers know.
struct Links(Arc<Bridge>);

impl LinkObserver for Links {
    fn link_changed(&self, port: PortNo, up: bool) {
        // A port that is being removed is no longer the bridge's.
        if self.0.set_link(port, up).is_ok() {
            self.0.barrier().wait();
        }
    }
}

/// The ports. All methods that change something block on files, threads and workers: not for async code.
pub struct Switch {
    bridge: Arc<Bridge>,
    data_path: Arc<DataPath>,
    run_dir: PathBuf,
    registry: Registry,
    state: StateDir,
    links: Arc<dyn LinkObserver>,
    ports: Mutex<BTreeMap<String, Port>>,
    /// Held by whoever changes ports, from check to done. False until the kept ports are there.
    changing: Mutex<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Switch {
    /// A switch without ports.
    pub fn empty(
        bridge: Arc<Bridge>,
        data_path: Arc<DataPath>,
        run_dir: PathBuf,
        registry: Registry,
        state: StateDir,
    ) -> Switch {
        let links = Arc::new(Links(bridge.clone()));
        let (ports, changing) = (Mutex::default(), Mutex::default());
        Switch { bridge, data_path, run_dir, registry, state, links, ports, changing }
    }

    /// The control side.
    pub fn bridge(&self) -> &Arc<Bridge> {
        &self.bridge
    }

    /// The workers.
    pub fn data_path(&self) -> &Arc<DataPath> {
        &self.data_path
    }

    /// Makes the kept ports. One that cannot be served is kept and shown with the reason, and tried again later.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn restore(&self) -> Result<(), RestoreError> {
        let mut restored = lock(&self.changing);
        let Some(bytes) = self.state.read(STATE_FILE)? else {
            *restored = true;
            return Ok(());
        };
        let unreadable =
            |detail: String| RestoreError::Unreadable { path: self.state.path().join(STATE_FILE), detail };
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if kept.version != VERSION {
            return Err(unreadable(format!("version {}", kept.version)));
        }
        for spec in kept.ports {
            let name = spec.name.clone();
            let port = self.serve_or_keep(spec);
            lock(&self.ports).insert(name, port);
        }
        *restored = true;
        Ok(())
    }

    fn serve_or_keep(&self, spec: PortSpec) -> Port {
        let number = PortNo(spec.ofport.unwrap_or(0));
        match self.start(&spec, number) {
            Ok(endpoint) => Port { spec, number, endpoint, failure: None },
            Err(problem) => {
                tracing::error!(port = spec.name, "the port cannot be served: {problem}");
                Port { spec, number, endpoint: None, failure: Some(problem.to_string()) }
            }
        }
    }

    /// Adds a port that [`crate::port_spec::read_add`] found good.
    ///
    /// # Errors
    /// Everything that speaks against it; nothing was changed.
    pub fn add(&self, mut spec: PortSpec) -> Result<PortView, Problem> {
        let _changing = self.change()?;
        self.check(&spec)?;
        let number = match spec.ofport {
            Some(number) => PortNo(number),
            None => self.free_number()?,
        };
        spec.ofport = Some(number.0);
        let endpoint = self.start(&spec, number)?;
        let name = spec.name.clone();
        lock(&self.ports).insert(name.clone(), Port { spec, number, endpoint, failure: None });
        if let Err(error) = self.keep() {
            let port = lock(&self.ports).remove(&name);
            self.stop(port);
            return Err(error);
        }
        tracing::info!(port = name, %number, "port added");
        self.show(&name)
    }

    /// Begins a change. Before the kept ports are there it would overwrite their list.
    fn change(&self) -> Result<MutexGuard<'_, bool>, Problem> {
        let restored = lock(&self.changing);
        if *restored {
            return Ok(restored);
        }
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the switch is starting or stopping; try again"))
    }

    /// What a look at the other ports and at the host says against it.
    fn check(&self, spec: &PortSpec) -> Result<(), Problem> {
        let mut errors = Errors::new();
        let mut conflict = false;
        {
            let ports = lock(&self.ports);
            if ports.contains_key(&spec.name) {
                conflict = true;
                errors.add("name", &spec.name, "there is a port of that name", "choose another");
            }
            let number = spec.ofport.map(PortNo);
            if let Some(other) = ports.values().find(|port| Some(port.number) == number) {
                conflict = true;
                let detail = format!("taken by the port `{}`", other.spec.name);
                errors.add("ofport", other.number, detail, "choose another, or none for the lowest free one");
            }
            let same = |port: &&Port| port.spec.kind == spec.kind && spec.kind != PortKind::VhostUser;
            if let Some(other) = ports.values().find(same) {
                conflict = true;
                let detail = format!("used by the port `{}`", other.spec.name);
                errors.add(kind_field(&spec.kind), kind_value(&spec.kind), detail, "choose another");
            }
        }
        if let PortKind::AfPacket(interface) = &spec.kind
            && let Err(error) = netdev::index(interface)
        {
            let remedy = "give the name of a network interface of this host, see `ip link`";
            errors.add("af_packet", interface, format!("no such network interface ({error})"), remedy);
        }
        errors.into_result(format!("the port `{}` cannot be added", spec.name), ()).map_err(|mut problem| {
            if conflict {
                problem.status = StatusCode::CONFLICT.as_u16();
            }
            problem
        })
    }

    fn free_number(&self) -> Result<PortNo, Problem> {
        let ports = lock(&self.ports);
        let taken: Vec<u32> = ports.values().map(|port| port.number.0).collect();
        (1..=PORT_NO_LAST.0)
            .find(|number| !taken.contains(number))
            .map(PortNo)
            .ok_or_else(|| Problem::conflict("every port number is taken").detail("delete a port first"))
    }

    /// Makes everything a port needs; on failure nothing is left of it.
    fn start(&self, spec: &PortSpec, number: PortNo) -> Result<Option<Endpoint>, Problem> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Problem::conflict(format!("the port `{}` cannot be served", spec.name))
                .detail(format!("{what}: {error}"))
        };
        let (device, link_up) = match &spec.kind {
            PortKind::VhostUser | PortKind::VhostUserClient(_) => (None, false),
            PortKind::Tap(name) => {
                let fd = netdev::open_tap(name)
                    .and_then(|fd| netdev::set_mtu(name, spec.mtu).map(|()| fd))
                    .and_then(|fd| netdev::set_up(name).map(|()| fd))
                    .map_err(|error| failed(&format!("the tap interface {name}"), &error))?;
                (Some(HostDevice { fd, kind: HostDeviceKind::Tap }), true)
            }
            PortKind::AfPacket(name) => {
                let fd = netdev::open_packet(name)
                    .map_err(|error| failed(&format!("the network interface {name}"), &error))?;
                let running = netdev::is_running(name).unwrap_or(false);
                (Some(HostDevice { fd, kind: HostDeviceKind::Packet }), running)
            }
        };
        self.data_path
            .add_port(number, &spec.name, spec.mtu, device)
            .map_err(|error| failed("the data path", &error))?;
        let config = PortConfig {
            ofport: number,
            name: spec.name.clone(),
            mac: self.mac(&spec.name, 0),
            vlan: spec.vlans.mode(),
            mtu: spec.mtu,
            link_up,
            speed_kbps: SPEED_KBPS,
            config: ofp::PortConfig(0),
        };
        if let Err(error) = self.bridge.add_port(config) {
            self.data_path.remove_port(number);
            return Err(failed("the bridge", &error));
        }
        // Whoever asked for the port may use it at once.
        self.bridge.barrier().wait();
        let endpoint = self.serve(spec, number).map_err(|error| failed("its socket", &error));
        if endpoint.is_err() {
            self.forget(number);
        }
        endpoint
    }

    /// Serves the socket of a vhost-user port.
    fn serve(
        &self,
        spec: &PortSpec,
        number: PortNo,
    ) -> Result<Option<Endpoint>, vhost_session::EndpointError> {
        let role = match &spec.kind {
            PortKind::VhostUser => SocketRole::Server {
                path: self.socket_path(&spec.name),
                owner: spec.socket.owner,
                group: spec.socket.group,
                mode: spec.socket.mode.unwrap_or(SOCKET_MODE),
            },
            PortKind::VhostUserClient(path) => {
                SocketRole::Client { path: path.clone(), retry_min: DIAL_RETRY.0, retry_max: DIAL_RETRY.1 }
            }
            PortKind::Tap(_) | PortKind::AfPacket(_) => return Ok(None),
        };
        let device = Device::new(self.mac(&spec.name, 1), spec.mtu, spec.queue_pairs);
        let port = NetPort::new(number, device, self.data_path.clone(), self.links.clone());
        let metrics = SessionMetrics::new(&self.registry, &[("port", &spec.name)]);
        serve(spec.name.clone(), role, move || Ok::<_, Refused>(port.backend()), metrics).map(Some)
    }

    fn socket_path(&self, name: &str) -> PathBuf {
        self.run_dir.join(format!("{name}.sock"))
    }

    /// A locally administered address that is the same after a restart. `side`: 0 for the switch's end of the port, 1
    /// for the device that a guest sees.
    fn mac(&self, name: &str, side: u8) -> MacAddr {
        let start = self.bridge.config().datapath_id ^ 0xcbf2_9ce4_8422_2325;
        let hash = name
            .bytes()
            .chain([side])
            .fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        let [a, b, c, d, e, ..] = hash.to_be_bytes();
        MacAddr([0x02, a, b, c, d, e])
    }

    /// Takes a port away from bridge and workers.
    fn forget(&self, number: PortNo) {
        if self.bridge.remove_port(number).is_ok() {
            self.bridge.barrier().wait();
        }
        self.data_path.remove_port(number);
    }

    /// Ends what serves a port. Frontends first: their rings are drained while the workers still know the port.
    fn stop(&self, port: Option<Port>) {
        let Some(Port { endpoint, number, failure, .. }) = port else { return };
        drop(endpoint);
        if failure.is_none() {
            self.forget(number);
        }
    }

    /// Deletes a port.
    ///
    /// # Errors
    /// There is no such port, or the list cannot be kept.
    pub fn delete(&self, name: &str) -> Result<(), Problem> {
        let _changing = self.change()?;
        let port = lock(&self.ports).remove(name).ok_or_else(|| no_port(name))?;
        if let Err(error) = self.keep() {
            lock(&self.ports).insert(name.to_string(), port);
            return Err(error);
        }
        self.stop(Some(port));
        tracing::info!(port = name, "port deleted");
        Ok(())
    }

    fn keep(&self) -> Result<(), Problem> {
        let ports = lock(&self.ports).values().map(|port| port.spec.clone()).collect();
        let text = serde_json::to_vec_pretty(&Kept { version: VERSION, ports })
            .map_err(|error| Problem::internal("the ports cannot be written").detail(error.to_string()))?;
        self.state.replace(STATE_FILE, &text).map_err(|error| {
            Problem::internal("the ports cannot be kept over a restart").detail(error.to_string())
        })
    }

    /// All ports, by name.
    pub fn list(&self) -> Vec<PortView> {
        lock(&self.ports).values().map(|port| self.view(port)).collect()
    }

    /// One port.
    ///
    /// # Errors
    /// There is no such port.
    pub fn show(&self, name: &str) -> Result<PortView, Problem> {
        lock(&self.ports).get(name).map(|port| self.view(port)).ok_or_else(|| no_port(name))
    }

    /// The name of a port.
    pub fn name_of(&self, number: PortNo) -> Option<String> {
        let ports = lock(&self.ports);
        ports.values().find(|port| port.number == number).map(|port| port.spec.name.clone())
    }

    fn view(&self, port: &Port) -> PortView {
        let counters = self.data_path_counters(port.number);
        let link_up = self.bridge.ports().iter().any(|config| config.ofport == port.number && config.link_up);
        let socket_path = match &port.spec.kind {
            PortKind::VhostUser => Some(self.socket_path(&port.spec.name)),
            PortKind::VhostUserClient(path) => Some(path.clone()),
            PortKind::Tap(_) | PortKind::AfPacket(_) => None,
        };
        PortView {
            spec: port.spec.clone(),
            socket_path,
            link_up: link_up && port.failure.is_none(),
            failure: port.failure.clone(),
            counters,
        }
    }

    fn data_path_counters(&self, number: PortNo) -> PortCountersView {
        let counters = self.bridge.port_counters(number).unwrap_or_default();
        PortCountersView {
            rx_packets: counters.rx_packets,
            rx_bytes: counters.rx_bytes,
            rx_dropped: counters.rx_dropped + counters.rx_errors,
            tx_packets: counters.tx_packets,
            tx_bytes: counters.tx_bytes,
            tx_dropped: counters.tx_dropped + counters.tx_errors,
        }
    }

    /// Whether a port is a device of the host.
    pub fn has_host_devices(&self) -> bool {
        let is = |port: &Port| matches!(port.spec.kind, PortKind::Tap(_) | PortKind::AfPacket(_));
        lock(&self.ports).values().any(is)
    }

    /// Looks at the links of the host's devices. For when the kernel says that one changed, and from time to time.
    pub fn look_at_links(&self) {
        let _changing = lock(&self.changing);
        self.take_over_links();
    }

    fn take_over_links(&self) {
        let mut links = Vec::new();
        for port in lock(&self.ports).values() {
            if let PortKind::Tap(name) | PortKind::AfPacket(name) = &port.spec.kind
                && port.failure.is_none()
            {
                links.push((port.number, name.clone()));
            }
        }
        for (number, name) in links {
            // Nothing is published unless it changed. A device that is gone has no link.
            let _ = self.bridge.set_link(number, netdev::is_running(&name).unwrap_or(false));
        }
    }

    /// Tries ports again that could not be served. For a timer.
    pub fn tick(&self) {
        let Ok(_changing) = self.changing.try_lock() else { return };
        let failed = |port: &Port| port.failure.is_some().then(|| port.spec.clone());
        let failed: Vec<_> = lock(&self.ports).values().filter_map(failed).collect();
        let mut served = false;
        for spec in failed {
            let number = PortNo(spec.ofport.unwrap_or(0));
            if let Ok(endpoint) = self.start(&spec, number) {
                tracing::info!(port = spec.name, "the port is served now");
                if let Some(port) = lock(&self.ports).get_mut(&spec.name) {
                    (port.endpoint, port.failure) = (endpoint, None);
                }
                served = true;
            }
        }
        if served {
            self.take_over_links();
        }
    }

    /// Stops all ports; they stay kept.
    pub fn close(&self) {
        let mut restored = lock(&self.changing);
        // A request that comes too late must not overwrite the list.
        *restored = false;
        let ports = std::mem::take(&mut *lock(&self.ports));
        for port in ports.into_values() {
            self.stop(Some(port));
        }
    }
}

fn no_port(name: &str) -> Problem {
    Problem::not_found(format!("there is no port `{name}`"))
}

fn kind_field(kind: &PortKind) -> &'static str {
    match kind {
        PortKind::VhostUser => "vhost_user",
        PortKind::VhostUserClient(_) => "client",
        PortKind::AfPacket(_) => "af_packet",
        PortKind::Tap(_) => "tap",
    }
}

fn kind_value(kind: &PortKind) -> String {
    match kind {
        PortKind::VhostUser => String::new(),
        PortKind::VhostUserClient(path) => Path::display(path).to_string(),
        PortKind::AfPacket(name) | PortKind::Tap(name) => name.clone(),
    }
}
