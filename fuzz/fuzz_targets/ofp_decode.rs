//! Bytes of an OpenFlow connection: cut, decoded, encoded, decoded again. What was understood must come back the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ofp::{Framer, decode};

/// Whole messages first: most inputs should get past the header.
fn one_message(data: &[u8]) {
    let Ok(length) = u16::try_from(data.len()) else { return };
    let mut bytes = data.to_vec();
    if let [version, _, high, low, ..] = bytes.as_mut_slice() {
        *version = ofp::VERSION;
        [*high, *low] = length.to_be_bytes();
    }
    let Ok(message) = decode(&bytes) else { return };
    let Ok(encoded) = message.encode() else { return };
    assert_eq!(decode(&encoded).as_ref(), Ok(&message));
}

fn stream(data: &[u8]) {
    let mut framer = Framer::new();
    for chunk in data.chunks(61) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let taken = framer.push(rest);
            rest = &rest[taken..];
            loop {
                match framer.pop() {
                    Ok(Some(message)) => drop(decode(message)),
                    Ok(None) => break,
                    Err(_) => return,
                }
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((0..=200, rest)) => one_message(rest),
        Some((_, rest)) => stream(rest),
        None => {}
    }
});
