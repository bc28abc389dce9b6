//! Edits of a [`Header`]. Each says by its result whether it applied: a frame that does not have the field, or
//! has it beyond the private copy, is left as it is.

use crate::{FlowKey, Header, MacAddr, ethertype, field};

mod mpls;
mod network;

/// Sets the destination address.
pub fn set_eth_dst(header: &mut Header, address: MacAddr) -> bool {
    set(header, 0, &address.0)
}

/// Sets the source address.
pub fn set_eth_src(header: &mut Header, address: MacAddr) -> bool {
    set(header, 6, &address.0)
}

/// Pushes a tag with TPID `tpid` (0x8100 or 0x88a8) in front of all others. Its TCI is that of the tag that was
/// the outer one, else zero (OpenFlow 1.3.5, 5.12). `false` if there is no Ethernet header or no room.
pub fn push_vlan(header: &mut Header, tpid: u16) -> bool {
    let tci = outer_tci(header).unwrap_or(0);
    if header.len() < 14 || !header.insert(12, 4) {
        return false;
    }
    let bytes = header.bytes_mut();
    bytes[12..14].copy_from_slice(&tpid.to_be_bytes());
    bytes[14..16].copy_from_slice(&tci.to_be_bytes());
    true
}

/// Pops the outer tag. `false` if there is none.
pub fn pop_vlan(header: &mut Header) -> bool {
    outer_tci(header).is_some() && header.remove(12, 4)
}

/// Sets the VID of the outer tag. `false` if there is none.
pub fn set_vlan_vid(header: &mut Header, vid: u16) -> bool {
    edit_tci(header, |tci| (tci & 0xf000) | (vid & 0x0fff))
}

/// Sets the PCP of the outer tag. `false` if there is none.
pub fn set_vlan_pcp(header: &mut Header, pcp: u8) -> bool {
    edit_tci(header, |tci| (tci & 0x1fff) | (u16::from(pcp & 7) << 13))
}

/// TCI of the outer tag.
pub fn outer_tci(header: &Header) -> Option<u16> {
    match header.bytes().get(12..18)? {
        &[t0, t1, c0, c1, _, _]
            if matches!(u16::from_be_bytes([t0, t1]), ethertype::VLAN | ethertype::SERVICE_VLAN) =>
        {
            Some(u16::from_be_bytes([c0, c1]))
        }
        _ => None,
    }
}

fn edit_tci(header: &mut Header, edit: impl FnOnce(u16) -> u16) -> bool {
    match outer_tci(header) {
        Some(tci) => set(header, 14, &edit(tci).to_be_bytes()),
        None => false,
    }
}

fn set(header: &mut Header, at: usize, value: &[u8]) -> bool {
    match header.bytes_mut().get_mut(at..at + value.len()) {
        Some(place) => {
            place.copy_from_slice(value);
            true
        }
        None => false,
    }
}

/// What became of an edit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done.
    Done,
    /// The frame does not have the field; it is as before.
    Absent,
    /// No room for a tag; the frame is as before.
    NoRoom,
    /// The TTL has run out; the frame is as before and must not be forwarded.
    Expired,
}

impl Outcome {
    fn of(done: bool) -> Outcome {
        if done { Outcome::Done } else { Outcome::Absent }
    }
}

/// An edit as a value: what it does to the bytes and what it does to the key are two functions that must agree.
/// Checksums of IPv4, TCP, UDP, SCTP and ICMP are kept right.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Edit {
    /// [`push_vlan`] with this TPID.
    PushVlan(u16),
    /// [`pop_vlan`].
    PopVlan,
    /// [`set_vlan_vid`].
    SetVlanVid(u16),
    /// [`set_vlan_pcp`].
    SetVlanPcp(u8),
    /// [`set_eth_dst`].
    SetEthDst(MacAddr),
    /// [`set_eth_src`].
    SetEthSrc(MacAddr),
    /// DSCP of IPv4 or IPv6.
    SetIpDscp(u8),
    /// ECN of IPv4 or IPv6.
    SetIpEcn(u8),
    /// EtherType behind the VLAN tags. What the bytes above it mean then is not looked at.
    SetEthType(u16),
    /// Protocol of IPv4, or the last next-header value of IPv6.
    SetIpProto(u8),
    /// TTL or hop limit.
    SetTtl(u8),
    /// TTL or hop limit minus one; [`Outcome::Expired`] instead of zero.
    DecTtl,
    /// IPv4 source.
    SetIpv4Src([u8; 4]),
    /// IPv4 destination.
    SetIpv4Dst([u8; 4]),
    /// IPv6 source.
    SetIpv6Src([u8; 16]),
    /// IPv6 destination.
    SetIpv6Dst([u8; 16]),
    /// IPv6 flow label.
    SetIpv6Flabel(u32),
    /// Source port of this protocol: TCP, UDP or SCTP.
    SetTpSrc(u8, u16),
    /// Destination port of this protocol: TCP, UDP or SCTP.
    SetTpDst(u8, u16),
    /// Type of this protocol, ICMP or ICMPv6.
    SetIcmpType(u8, u8),
    /// Code of this protocol, ICMP or ICMPv6.
    SetIcmpCode(u8, u8),
    /// ARP opcode.
    SetArpOp(u16),
    /// ARP sender protocol address.
    SetArpSpa([u8; 4]),
    /// ARP target protocol address.
    SetArpTpa([u8; 4]),
    /// ARP sender hardware address.
    SetArpSha(MacAddr),
    /// ARP target hardware address.
    SetArpTha(MacAddr),
    /// Target of a neighbour solicitation or advertisement.
    SetNdTarget([u8; 16]),
    /// Source link-layer option of a neighbour solicitation.
    SetNdSll(MacAddr),
    /// Target link-layer option of a neighbour advertisement.
    SetNdTll(MacAddr),
    /// Pushes an MPLS label with this EtherType behind the VLAN tags: a copy of the outer one, else label 0 with the
    /// TTL of IP.
    PushMpls(u16),
    /// Pops the outer MPLS label; what follows has this EtherType.
    PopMpls(u16),
    /// Label of the outer MPLS entry.
    SetMplsLabel(u32),
    /// Traffic class of the outer MPLS entry.
    SetMplsTc(u8),
    /// Bottom of stack bit of the outer MPLS entry.
    SetMplsBos(bool),
    /// TTL of the outer MPLS entry.
    SetMplsTtl(u8),
    /// TTL of the outer MPLS entry minus one; [`Outcome::Expired`] instead of zero.
    DecMplsTtl,
    /// TTL of the outer MPLS entry from the next header: another entry, IPv4 or IPv6.
    CopyTtlOut,
    /// TTL of the next header from the outer MPLS entry.
    CopyTtlIn,
    /// Tunnel id of the packet in the pipeline; no byte of it.
    SetTunnelId(u64),
}

impl Edit {
    /// Applies the edit to the bytes.
    #[inline]
    pub fn apply(self, header: &mut Header) -> Outcome {
        match self {
            Edit::PushVlan(tpid) if push_vlan(header, tpid) => Outcome::Done,
            Edit::PushVlan(_) => Outcome::NoRoom,
            Edit::PopVlan => Outcome::of(pop_vlan(header)),
            Edit::SetVlanVid(vid) => Outcome::of(set_vlan_vid(header, vid)),
            Edit::SetVlanPcp(pcp) => Outcome::of(set_vlan_pcp(header, pcp)),
            Edit::SetEthDst(address) => Outcome::of(set_eth_dst(header, address)),
            Edit::SetEthSrc(address) => Outcome::of(set_eth_src(header, address)),
            Edit::SetTunnelId(_) => Outcome::Done,
            other => mpls::apply(other, header).unwrap_or_else(|| network::apply(other, header)),
        }
    }

    /// Applies the edit to the key of the frame, so that later tables match on the edited packet.
    pub fn apply_to_key(self, key: &mut FlowKey) {
        let tagged = key.get(field::VLAN_TCI) & 0x1000 != 0;
        match self {
            Edit::PushVlan(_) => {
                let outer = key.get(field::VLAN_TCI);
                key.set(field::VLAN_TCI_3, key.get(field::VLAN_TCI_2));
                key.set(field::VLAN_TCI_2, outer);
                key.set(field::VLAN_TCI, outer | 0x1000);
            }
            Edit::PopVlan => {
                key.set(field::VLAN_TCI, key.get(field::VLAN_TCI_2));
                key.set(field::VLAN_TCI_2, key.get(field::VLAN_TCI_3));
                key.set(field::VLAN_TCI_3, 0);
            }
            Edit::SetVlanVid(vid) if tagged => key.set(field::VLAN_VID, u64::from(0x1000 | (vid & 0xfff))),
            Edit::SetVlanPcp(pcp) if tagged => key.set(field::VLAN_PCP, u64::from(pcp)),
            Edit::SetVlanVid(_) | Edit::SetVlanPcp(_) => {}
            Edit::SetEthDst(address) => key.set(field::ETH_DST, address.to_u64()),
            Edit::SetEthSrc(address) => key.set(field::ETH_SRC, address.to_u64()),
            Edit::SetTunnelId(id) => key.set(field::TUNNEL_ID, id),
            other if mpls::apply_to_key(other, key) => {}
            other => network::apply_to_key(other, key),
        }
    }
}
