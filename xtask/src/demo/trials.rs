//! What the guests of the demo are asked to do.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::report::{DiskResult, NetworkResult, Report};
use super::stage::{GUESTS, NETWORKS, Stage, volume};
use super::tiers;
use crate::lab::Guest;
use crate::progress::Progress;

/// What every guest writes to its file system.
const FILE_MIB: u64 = 16;
/// What is sent from guest to guest.
const TRANSFER_MIB: u64 = 48;
/// How long the work of one guest may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Makes a file system, writes, throws the cache away, reads and compares.
fn disk_script() -> String {
    format!(
        "mkfs.ext4 -q /dev/vda && echo mkfs ok && mount /dev/vda /mnt \
         && dd if=/dev/urandom of=/mnt/data bs=1M count={FILE_MIB} 2>/dev/null && sha256sum </mnt/data >/tmp/sum \
         && sync && umount /mnt && echo 3 >/proc/sys/vm/drop_caches && echo write ok && mount /dev/vda /mnt \
         && [ \"$(sha256sum </mnt/data)\" = \"$(cat /tmp/sum)\" ] && umount /mnt && e2fsck -fn /dev/vda >/dev/null 2>&1 \
         && echo verify ok"
    )
}

/// Tries disks, the tiered volume, then networks.
pub fn run(stage: &mut Stage, progress: &Progress) -> anyhow::Result<Report> {
    progress.note("the guests make file systems, write and verify");
    let disks = disks(stage)?;
    progress.note("the first guest reads from a clone of the golden image");
    let tiers = tiers::run(stage, progress)?;
    progress.note("the guests talk to each other");
    let network = network(stage, progress)?;
    Ok(Report {
        accelerator: stage.accelerator.name(),
        disks,
        tiers,
        network,
        metrics: [&stage.blk, &stage.switch, &stage.controller].map(|daemon| daemon.metrics_address()),
        rest: stage.rest,
        seconds: 0.0,
        left_running: None,
    })
}

/// Flushes of a volume that the storage daemon has counted.
fn flushes(stage: &Stage, volume: &str) -> anyhow::Result<f64> {
    let metrics = stage.blk.metrics()?;
    Ok(metrics.sum("sluice_blk_requests_total", &[("volume", volume), ("op", "flush")]).unwrap_or(0.0))
}

fn disks(stage: &mut Stage) -> anyhow::Result<Vec<DiskResult>> {
    let mut before = Vec::new();
    for (name, _) in GUESTS {
        before.push(flushes(stage, &volume(name))?);
    }
    // All three at once.
    let mut started = Vec::new();
    for guest in &mut stage.guests {
        started.push(guest.send(&disk_script())?);
    }
    let mut outputs = Vec::new();
    for (guest, id) in stage.guests.iter_mut().zip(started) {
        outputs.push(guest.finish(id, LIMIT)?.output);
    }
    let mut results = Vec::new();
    for (index, ((name, network), output)) in GUESTS.into_iter().zip(outputs).enumerate() {
        let guest = &mut stage.guests[index];
        let said = |what: &str| output.lines().any(|line| line == format!("{what} ok"));
        results.push(DiskResult {
            guest: name.into(),
            vlan: NETWORKS[network].1,
            model: guest.run(
                "echo $(basename $(readlink /sys/block/vda/device/driver)) $(cat /sys/block/vda/serial)",
            )?,
            size_bytes: guest
                .run("blockdev --getsize64 /dev/vda")?
                .trim()
                .parse()
                .context("the size of the disk")?,
            mkfs: said("mkfs"),
            write: said("write"),
            verify: said("verify"),
            flushes: flushes(stage, &volume(name))? - before[index],
        });
    }
    Ok(results)
}

/// Address of guest `index`. All are in one subnet: what keeps them apart can only be the VLAN.
fn address(index: usize) -> String {
    format!("10.0.0.{}", index + 1)
}

fn network(stage: &mut Stage, progress: &Progress) -> anyhow::Result<NetworkResult> {
    for (index, guest) in stage.guests.iter_mut().enumerate() {
        guest.run(&format!("ip addr add {}/24 dev eth0 && ip link set eth0 up", address(index)))?;
    }
    let [alice, bob, carol] = &mut stage.guests[..] else { unreachable!("the stage has three guests") };
    let ping = ping(alice, &address(1), 5)?;
    progress.note("measuring the throughput");
    // The receiver proves that every byte came through.
    bob.run(&format!(
        "mkdir -p /tmp/www && dd if=/dev/urandom of=/tmp/www/data bs=1M count={TRANSFER_MIB} 2>/dev/null \
         && sha256sum </tmp/www/data >/tmp/www/sum && httpd -p 80 -h /tmp/www"
    ))?;
    let url = format!("http://{}", address(1));
    let start = Instant::now();
    alice.run(&format!("wget -q -O /tmp/data {url}/data"))?;
    let seconds = start.elapsed().as_secs_f64();
    let intact =
        alice.run(&format!("[ \"$(sha256sum </tmp/data)\" = \"$(wget -q -O - {url}/sum)\" ] && echo intact"));
    progress.note("trying to reach the other VLAN");
    let into = self::ping(alice, &address(2), 2)?.received;
    let out_of = self::ping(carol, &address(0), 2)?.received;
    Ok(NetworkResult {
        ping,
        megabits_per_second: (TRANSFER_MIB << 20) as f64 * 8.0 / 1e6 / seconds,
        intact: intact.is_ok(),
        crossed: into + out_of,
    })
}

/// What came back of some pings.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Ping {
    /// Requests.
    pub sent: u32,
    /// Answers.
    pub received: u32,
    /// Mean time until the answer, in milliseconds; None without any answer.
    pub mean_ms: Option<f64>,
}

fn ping(guest: &mut Guest, address: &str, count: u32) -> anyhow::Result<Ping> {
    let command = format!("ping -c {count} -i 0.2 -W 1 {address}");
    let done = guest.run_within(&command, LIMIT)?;
    parse_ping(&done.output).with_context(|| format!("{command}: {}", done.output))
}

/// Reads the summary of busybox's ping.
fn parse_ping(output: &str) -> Option<Ping> {
    let counts = output.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = counts.split_whitespace().filter_map(|word| word.parse().ok());
    let mean = output.lines().find_map(|line| line.strip_prefix("round-trip min/avg/max = "));
    let mean_ms = mean.and_then(|times| times.split('/').nth(1)?.parse().ok());
    Some(Ping { sent: numbers.next()?, received: numbers.next()?, mean_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_are_understood() {
        let good = "PING 10.0.0.2 (10.0.0.2): 56 data bytes\n\n--- 10.0.0.2 ping statistics ---\n\
                    5 packets transmitted, 5 packets received, 0% packet loss\n\
                    round-trip min/avg/max = 0.612/1.021/2.345 ms";
        let ping = parse_ping(good).unwrap();
        assert_eq!((ping.sent, ping.received, ping.mean_ms), (5, 5, Some(1.021)));
        let lost =
            "\n--- 10.0.0.3 ping statistics ---\n2 packets transmitted, 0 packets received, 100% packet loss";
        let ping = parse_ping(lost).unwrap();
        assert_eq!((ping.sent, ping.received, ping.mean_ms), (2, 0, None));
        assert!(parse_ping("ping: sendto: Network is unreachable").is_none());
    }
}
