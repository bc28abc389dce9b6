//! `control`: what changes of the flow tables cost a switch, and what they cost the frames that go through it meanwhile.
#![allow(clippy::print_stdout, reason = "figures are what this program is for")]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use benches::controller::{Controller, exact};
use benches::frames::flow;
use benches::net_load::{IN_FLIGHT_MAX, Load, Outcome, Shared};
use benches::ovs::OvsDpdk;
use benches::rounds::median;
use benches::sluice::Sluice;
use benches::{CLIENT_CORE, SERVER_CORE, pin, pin_threads};
use clap::Parser;
use comfy_table::{Table, presets};
use ofp::{Action, Body, FlowModCommand, Message, PacketOut, SwitchConfig};
use xtask::lab::hugepages::Hugepages;

/// Changes of flows under traffic: the worker on core 0, its control side, the controller and the load on core 1.
#[derive(Parser)]
struct Options {
    /// Flow-mods of one stream
    #[arg(long, default_value_t = 200_000)]
    flow_mods: u32,
    /// Round trips of each kind
    #[arg(long, default_value_t = 2000)]
    trips: u32,
    /// Frames a second
    #[arg(long, default_value_t = 1e6)]
    rate: f64,
    /// Measure Sluice alone
    #[arg(long)]
    alone: bool,
}

/// Rules that are there, one of which is changed at a time; each has its flow.
const RULES: u32 = 100_000;
/// Flows of the load while flow-mods are streamed.
const FLOWS: u32 = 1000;
/// Memory of Open vSwitch, in pages of 2 MiB.
const PAGES: u64 = 640;

/// What was measured of one switch.
struct Figures {
    flow_mods_per_second: f64,
    streamed: Outcome,
    barrier_us: f64,
    packet_us: f64,
    changed: Outcome,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let program = benches::release_program()?;
    pin(std::process::id(), CLIENT_CORE)?;
    let dir = tempfile::tempdir()?;
    let mut columns = Vec::new();
    if !options.alone {
        let _pages = Hugepages::reserve(PAGES)?;
        let ovs = OvsDpdk::start(3)?;
        pin_threads(
            ovs.process_id()?,
            |name| if name.starts_with("pmd") { SERVER_CORE } else { CLIENT_CORE },
        )?;
        let sockets = [1, 2, 3].map(|number| ovs.socket(number));
        columns.push((
            "Open vSwitch-DPDK",
            measure(&options, &ovs.openflow(), &sockets).context("Open vSwitch")?,
        ));
    }
    let mut sluice = Sluice::start(&program, &dir.path().join("site"), 3)?;
    let worker = |name: &str| if name.starts_with("switch-") { SERVER_CORE } else { CLIENT_CORE };
    pin_threads(sluice.process_id(), worker)?;
    let sockets = [1, 2, 3].map(|number| sluice.socket(number));
    let target = sluice.openflow()?.to_owned();
    columns.push(("Sluice", measure(&options, &target, &sockets).context("sluice switch")?));
    print(&options, &columns);
    Ok(())
}

fn print(options: &Options, columns: &[(&str, Figures)]) {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(std::iter::once("what").chain(columns.iter().map(|(name, _)| *name)));
    let mut row = |what: &str, figure: &dyn Fn(&Figures) -> String| {
        let figures = columns.iter().map(|(_, figures)| figure(figures));
        table.add_row(std::iter::once(what.to_owned()).chain(figures));
    };
    let rate = |outcome: &Outcome| format!("{:.2}", outcome.sent as f64 / outcome.seconds / 1e6);
    let gap = |outcome: &Outcome| format!("{:.1}", outcome.longest_gap.as_secs_f64() * 1e3);
    row(&format!("{} flow-mods and a barrier, k/s", options.flow_mods), &|figures| {
        format!("{:.0}", figures.flow_mods_per_second / 1e3)
    });
    row("  Mpps meanwhile", &|figures| rate(&figures.streamed));
    row("  frames lost", &|figures| figures.streamed.lost.to_string());
    row("  longest time without a frame, ms", &|figures| gap(&figures.streamed));
    row("flow-mod + barrier, us p50", &|figures| format!("{:.1}", figures.barrier_us));
    row("packet-out to packet-in, us p50", &|figures| format!("{:.1}", figures.packet_us));
    row(&format!("{} changes of one of {RULES} rules: frames sent", options.trips), &|figures| {
        figures.changed.sent.to_string()
    });
    row("  Mpps meanwhile", &|figures| rate(&figures.changed));
    row("  frames lost", &|figures| figures.changed.lost.to_string());
    row("  by the old way after the barrier", &|figures| figures.changed.wrong.to_string());
    row("  longest time without a frame, ms", &|figures| gap(&figures.changed));
    println!("{table}");
}

fn measure(options: &Options, target: &str, sockets: &[PathBuf; 3]) -> anyhow::Result<Figures> {
    let mut controller = Controller::connect(target)?;
    let rules = |from: u32, to: u32| -> anyhow::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for number in from..to {
            let body = Body::FlowMod(exact(FlowModCommand::Add, &flow(number), 2));
            (Message { xid: number, body }).encode_into(&mut bytes)?;
        }
        Ok(bytes)
    };
    controller.send_raw(&rules(0, RULES)?)?;
    controller.barrier()?;
    let barrier_us = flow_mod_trips(&mut controller, options.trips)?;
    let packet_us = packet_trips(&mut controller, options.trips)?;
    let stream = rules(RULES, RULES + options.flow_mods)?;
    let mut load = Load::connect(&sockets.each_ref().map(PathBuf::as_path))?;
    let (streamed, seconds) = under_load(
        &mut load,
        options.rate,
        FLOWS,
        |_, _, _| true,
        |_| {
            let start = Instant::now();
            controller.send_raw(&stream)?;
            controller.barrier()?;
            Ok(start.elapsed().as_secs_f64())
        },
    )?;
    let changed = changes(options, target, &mut load)?;
    let flow_mods_per_second = f64::from(options.flow_mods) / seconds;
    Ok(Figures { flow_mods_per_second, streamed, barrier_us, packet_us, changed })
}

/// Runs `work` while frames flow, after they have for a moment.
fn under_load<R: Send>(
    load: &mut Load,
    rate: f64,
    flows: u32,
    right: impl FnMut(usize, u64, u32) -> bool,
    work: impl FnOnce(&Shared) -> anyhow::Result<R> + Send,
) -> anyhow::Result<(Outcome, R)> {
    let shared = load.shared();
    shared.stop.store(false, Ordering::Relaxed);
    let before = shared.next.load(Ordering::Relaxed);
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            let deadline = Instant::now() + Duration::from_secs(5);
            while shared.next.load(Ordering::Relaxed) < before + 100_000 && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            let result = work(&shared);
            shared.stop.store(true, Ordering::Relaxed);
            result
        });
        let outcome = load.run(rate, flows, right);
        let result = worker.join().map_err(|_| anyhow!("the controller's thread panicked"))??;
        Ok((outcome, result))
    })
}

/// Median of the round trips of a flow-mod and its barrier, microseconds.
fn flow_mod_trips(controller: &mut Controller, trips: u32) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    for trip in 0..trips {
        let body = Body::FlowMod(exact(FlowModCommand::Add, &flow(trip % RULES), 2));
        let mut bytes = (Message { xid: trip, body }).encode()?;
        (Message { xid: u32::MAX, body: Body::BarrierRequest }).encode_into(&mut bytes)?;
        let start = Instant::now();
        controller.send_raw(&bytes)?;
        while controller.receive()?.body != Body::BarrierReply {}
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&times))
}

/// Median of the round trips of a packet that the switch sends back to its controller, microseconds.
fn packet_trips(controller: &mut Controller, trips: u32) -> anyhow::Result<f64> {
    let action = Action::Output { port: ofp::PortNo::CONTROLLER, max_len: ofp::CONTROLLER_LEN_NO_BUFFER };
    let packet = PacketOut {
        buffer_id: ofp::NO_BUFFER,
        in_port: ofp::PortNo::CONTROLLER,
        actions: vec![action],
        data: flow(0).frame().to_vec(),
    };
    let bytes = (Message { xid: 7, body: Body::PacketOut(packet) }).encode()?;
    // Open vSwitch sends packets to whoever called only if they say how many bytes they want.
    let config = SwitchConfig { flags: ofp::ConfigFlags(0), miss_send_len: ofp::CONTROLLER_LEN_NO_BUFFER };
    controller.send(Body::SetConfig(config))?;
    let mut times = Vec::new();
    for _ in 0..trips {
        let start = Instant::now();
        controller.send_raw(&bytes)?;
        while !matches!(controller.receive()?.body, Body::PacketIn(_)) {}
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(median(&times))
}

/// When a rule was changed: frames from the first number on may take the new way, those from the second on must. Those
/// that wait in the ring when it is changed may too.
#[derive(Clone, Copy)]
struct Change {
    begun: u64,
    done: u64,
}

/// Sends one flow after the other to port 3 instead of 2, while all of them are in use.
fn changes(options: &Options, target: &str, load: &mut Load) -> anyhow::Result<Outcome> {
    let changes: Arc<Mutex<HashMap<u32, Change>>> = Arc::default();
    let mut controller = Controller::connect(target)?;
    let known = changes.clone();
    let right = move |receiver: usize, number: u64, flow: u32| {
        let changed = known.lock().unwrap_or_else(PoisonError::into_inner).get(&flow).copied();
        match changed {
            None => receiver == 0,
            Some(change) if number < change.begun => receiver == 0,
            Some(change) => receiver == 1 || number < change.done,
        }
    };
    let (outcome, ()) = under_load(load, options.rate, RULES, right, |shared| {
        for number in 0..options.trips {
            // Spread over the rules.
            let chosen = number.wrapping_mul(47) % RULES;
            let begun = shared.next.load(Ordering::Acquire).saturating_sub(IN_FLIGHT_MAX);
            let note = |done: u64| {
                let mut changes = changes.lock().unwrap_or_else(PoisonError::into_inner);
                changes.insert(chosen, Change { begun, done });
            };
            note(u64::MAX);
            controller.send(Body::FlowMod(exact(FlowModCommand::ModifyStrict, &flow(chosen), 3)))?;
            controller.barrier()?;
            // What is sent from now on.
            note(shared.next.load(Ordering::Acquire) + IN_FLIGHT_MAX);
        }
        Ok(())
    })?;
    Ok(outcome)
}
