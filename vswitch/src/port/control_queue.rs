//! Commands of the control queue (VIRTIO 1.2, 5.1.6.5).

/// What a command asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    /// Receive on the first so many queue pairs.
    QueuePairs(u16),
    /// The driver has announced itself.
    Announced,
    /// A filter for receiving: the switch may deliver more than asked for, so nothing changes.
    Filter,
}

/// Longest command that is looked at: two MAC tables of 1024 addresses.
pub const COMMAND_BYTES_MAX: usize = 2 + 2 * (4 + 6 * 1024);

const CLASS_RX: u8 = 0;
const CLASS_MAC: u8 = 1;
const CLASS_ANNOUNCE: u8 = 3;
const CLASS_MQ: u8 = 4;
/// Highest command of [`CLASS_RX`]: VIRTIO_NET_CTRL_RX_NOBCAST.
const RX_LAST: u8 = 5;
const MAC_TABLE_SET: u8 = 0;
const MAC_ADDR_SET: u8 = 1;

/// Reads a command: class, command, and what belongs to it. `None`: unknown, too short, or not allowed.
pub fn parse(bytes: &[u8], queue_pairs: u16) -> Option<Command> {
    let (&[class, command], data) = bytes.split_first_chunk::<2>()?;
    match (class, command) {
        (CLASS_RX, 0..=RX_LAST) => data.first().map(|_| Command::Filter),
        (CLASS_MAC, MAC_ADDR_SET) => (data.len() >= 6).then_some(Command::Filter),
        (CLASS_MAC, MAC_TABLE_SET) => table(data).and_then(table).map(|_| Command::Filter),
        (CLASS_ANNOUNCE, 0) => Some(Command::Announced),
        (CLASS_MQ, 0) => {
            let pairs = u16::from_le_bytes(*data.first_chunk::<2>()?);
            (1..=queue_pairs).contains(&pairs).then_some(Command::QueuePairs(pairs))
        }
        _ => None,
    }
}

/// Passes over a MAC table; returns what follows it.
fn table(data: &[u8]) -> Option<&[u8]> {
    let (count, rest) = data.split_first_chunk::<4>()?;
    rest.get(usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(6)?..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        for (bytes, command) in [
            (&[4, 0, 2, 0][..], Some(Command::QueuePairs(2))),
            (&[4, 0, 4, 0], Some(Command::QueuePairs(4))),
            (&[4, 0, 5, 0], None),
            (&[4, 0, 0, 0], None),
            (&[4, 0, 2], None),
            (&[4, 1, 2, 0], None),
            (&[3, 0], Some(Command::Announced)),
            (&[0, 0, 1], Some(Command::Filter)),
            (&[0, 5, 1], Some(Command::Filter)),
            (&[0, 6, 1], None),
            (&[0, 0], None),
            (&[1, 1, 2, 0, 0, 0, 0, 1], Some(Command::Filter)),
            (&[1, 1, 2, 0, 0, 0, 0], None),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0], Some(Command::Filter)),
            (&[1, 0, 1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0], Some(Command::Filter)),
            (&[1, 0, 2, 0, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0], None),
            (&[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], None),
            (&[2, 0, 0, 0], None),
            (&[5, 0], None),
            (&[4], None),
            (&[], None),
        ] {
            assert_eq!(parse(bytes, 4), command, "{bytes:?}");
        }
    }
}
