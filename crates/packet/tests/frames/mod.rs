//! Well-formed frames of every kind, written by smoltcp.

use proptest::prelude::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, Icmpv4Message, Icmpv4Packet, IpProtocol, Ipv4Address,
    Ipv4Packet, Ipv4Repr, Ipv6Address, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr,
    RawHardwareAddress, TcpPacket, UdpPacket,
};

/// What is above Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp4,
    Udp4,
    UdpWithoutChecksum4,
    Icmp4,
    Tcp6,
    Udp6,
    Solicitation,
    Advertisement,
    Arp,
    Other,
}

/// A frame by its parts.
#[derive(Clone, Debug)]
pub struct Parts {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    /// TPID and TCI.
    pub tags: Vec<(u16, u16)>,
    pub kind: Kind,
    pub tos: u8,
    pub ttl: u8,
    pub label: u32,
    pub ip4: ([u8; 4], [u8; 4]),
    pub ip6: ([u8; 16], [u8; 16]),
    pub ports: (u16, u16),
    pub payload: Vec<u8>,
}

pub fn parts() -> impl Strategy<Value = Parts> {
    let kind = proptest::sample::select(vec![
        Kind::Tcp4,
        Kind::Udp4,
        Kind::UdpWithoutChecksum4,
        Kind::Icmp4,
        Kind::Tcp6,
        Kind::Udp6,
        Kind::Solicitation,
        Kind::Advertisement,
        Kind::Arp,
        Kind::Other,
    ]);
    let tag = (proptest::sample::select(vec![0x8100u16, 0x88a8]), any::<u16>());
    let payload = proptest::collection::vec(any::<u8>(), 0..300);
    let ethernet = (any::<[u8; 6]>(), any::<[u8; 6]>(), proptest::collection::vec(tag, 0..4), kind);
    let ip =
        (any::<u8>(), 1..=255u8, 0..1u32 << 20, any::<([u8; 4], [u8; 4])>(), any::<([u8; 16], [u8; 16])>());
    (ethernet, ip, any::<(u16, u16)>(), payload).prop_map(
        |((dst, src, tags, kind), (tos, ttl, label, ip4, ip6), ports, payload)| Parts {
            dst,
            src,
            tags,
            kind,
            tos,
            ttl,
            label,
            ip4,
            ip6,
            ports,
            payload,
        },
    )
}

impl Parts {
    pub fn eth_type(&self) -> u16 {
        match self.kind {
            Kind::Tcp4 | Kind::Udp4 | Kind::UdpWithoutChecksum4 | Kind::Icmp4 => 0x0800,
            Kind::Tcp6 | Kind::Udp6 | Kind::Solicitation | Kind::Advertisement => 0x86dd,
            Kind::Arp => 0x0806,
            Kind::Other => 0x1234,
        }
    }

    fn addresses4(&self) -> (Ipv4Address, Ipv4Address) {
        (self.ip4.0.into(), self.ip4.1.into())
    }

    fn addresses6(&self) -> (Ipv6Address, Ipv6Address) {
        (self.ip6.0.into(), self.ip6.1.into())
    }

    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = [self.dst, self.src].concat();
        for (tpid, tci) in &self.tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        frame.extend(self.eth_type().to_be_bytes());
        frame.extend(match self.kind {
            Kind::Tcp4 => self.ipv4(IpProtocol::Tcp, self.tcp(self.addresses4())),
            Kind::Udp4 => self.ipv4(IpProtocol::Udp, self.udp(self.addresses4(), true)),
            Kind::UdpWithoutChecksum4 => self.ipv4(IpProtocol::Udp, self.udp(self.addresses4(), false)),
            Kind::Icmp4 => self.ipv4(IpProtocol::Icmp, self.icmp4()),
            Kind::Tcp6 => self.ipv6(IpProtocol::Tcp, self.tcp(self.addresses6())),
            Kind::Udp6 => self.ipv6(IpProtocol::Udp, self.udp(self.addresses6(), true)),
            Kind::Solicitation | Kind::Advertisement => self.ipv6(IpProtocol::Icmpv6, self.ndisc()),
            Kind::Arp => self.arp(),
            Kind::Other => self.payload.clone(),
        });
        frame
    }

    fn ipv4(&self, next_header: IpProtocol, above: Vec<u8>) -> Vec<u8> {
        let (src_addr, dst_addr) = self.addresses4();
        let repr =
            Ipv4Repr { src_addr, dst_addr, next_header, payload_len: above.len(), hop_limit: self.ttl };
        let mut bytes = vec![0; 20 + above.len()];
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
        repr.emit(&mut packet, &ChecksumCapabilities::default());
        packet.set_dscp(self.tos >> 2);
        packet.set_ecn(self.tos & 3);
        packet.fill_checksum();
        packet.payload_mut().copy_from_slice(&above);
        bytes
    }

    fn ipv6(&self, next_header: IpProtocol, above: Vec<u8>) -> Vec<u8> {
        let (src_addr, dst_addr) = self.addresses6();
        let repr =
            Ipv6Repr { src_addr, dst_addr, next_header, payload_len: above.len(), hop_limit: self.ttl };
        let mut bytes = vec![0; 40 + above.len()];
        let mut packet = Ipv6Packet::new_unchecked(&mut bytes);
        repr.emit(&mut packet);
        packet.set_traffic_class(self.tos);
        packet.set_flow_label(self.label);
        packet.payload_mut().copy_from_slice(&above);
        bytes
    }

    fn tcp<A: Into<smoltcp::wire::IpAddress>>(&self, (src, dst): (A, A)) -> Vec<u8> {
        let mut bytes = vec![0; 20 + self.payload.len()];
        bytes[20..].copy_from_slice(&self.payload);
        let mut packet = TcpPacket::new_unchecked(&mut bytes);
        packet.set_src_port(self.ports.0);
        packet.set_dst_port(self.ports.1);
        packet.set_header_len(20);
        packet.fill_checksum(&src.into(), &dst.into());
        bytes
    }

    fn udp<A: Into<smoltcp::wire::IpAddress>>(&self, (src, dst): (A, A), checksum: bool) -> Vec<u8> {
        let mut bytes = vec![0; 8 + self.payload.len()];
        bytes[8..].copy_from_slice(&self.payload);
        let len = bytes.len() as u16;
        let mut packet = UdpPacket::new_unchecked(&mut bytes);
        packet.set_src_port(self.ports.0);
        packet.set_dst_port(self.ports.1);
        packet.set_len(len);
        if checksum {
            packet.fill_checksum(&src.into(), &dst.into());
        }
        bytes
    }

    fn icmp4(&self) -> Vec<u8> {
        let mut bytes = vec![0; 8 + self.payload.len()];
        bytes[8..].copy_from_slice(&self.payload);
        let mut packet = Icmpv4Packet::new_unchecked(&mut bytes);
        packet.set_msg_type(Icmpv4Message::from(self.ports.0 as u8));
        packet.set_msg_code(self.ports.1 as u8);
        packet.fill_checksum();
        bytes
    }

    fn ndisc(&self) -> Vec<u8> {
        let lladdr = Some(RawHardwareAddress::from(EthernetAddress(self.src)));
        let target_addr = self.ip6.1.into();
        let repr = smoltcp::wire::Icmpv6Repr::Ndisc(match self.kind {
            Kind::Solicitation => NdiscRepr::NeighborSolicit { target_addr, lladdr },
            _ => NdiscRepr::NeighborAdvert { flags: NdiscNeighborFlags::SOLICITED, target_addr, lladdr },
        });
        let mut bytes = vec![0; repr.buffer_len()];
        let (src, dst) = self.addresses6();
        let mut packet = smoltcp::wire::Icmpv6Packet::new_unchecked(&mut bytes);
        repr.emit(&src, &dst, &mut packet, &ChecksumCapabilities::default());
        bytes
    }

    fn arp(&self) -> Vec<u8> {
        let repr = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::from(self.ports.0),
            source_hardware_addr: EthernetAddress(self.src),
            source_protocol_addr: self.ip4.0.into(),
            target_hardware_addr: EthernetAddress(self.dst),
            target_protocol_addr: self.ip4.1.into(),
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut ArpPacket::new_unchecked(&mut bytes));
        bytes
    }
}
