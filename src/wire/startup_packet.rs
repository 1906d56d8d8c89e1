//! The untyped first packets of a connection (manual: protocol-flow-start-up, protocol-flow-ssl, protocol-flow-gssapi).

use bytes::BytesMut;
use pgwire::messages::startup::Startup;
use pgwire::messages::{DecodeContext, Message};

use super::{Malformed, Reader, STARTUP_PACKET_LEN_MAX};

const CANCEL_REQUEST_CODE: u32 = 80_877_102;
const SSL_REQUEST_CODE: u32 = 80_877_103;
const GSSENC_REQUEST_CODE: u32 = 80_877_104;
/// The shortest and longest secret key of a CancelRequest (3.2 allows up to 256 bytes).
const SECRET_LEN: std::ops::RangeInclusive<usize> = 4..=256;

/// One packet sent before the typed messages begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartupPacket {
    /// The client asks for TLS.
    SslRequest,
    /// The client asks for GSSAPI encryption.
    GssEncRequest,
    /// The client asks to cancel another connection's query. Nothing is answered.
    CancelRequest(CancelKey),
    /// The client logs in.
    StartupMessage(StartupMessage),
}

/// What names the connection that a CancelRequest is about (BackendKeyData).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CancelKey {
    /// The process id as the manual calls it.
    pub process_id: u32,
    /// 4 bytes in protocol 3.0, up to 256 in 3.2.
    pub secret: Box<[u8]>,
}

impl std::fmt::Debug for CancelKey {
    /// Never shows the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CancelKey({}, …)", self.process_id)
    }
}

/// A client's login: version and parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupMessage {
    /// The protocol version as sent: major in the upper 16 bits. The major is always 3.
    pub version: u32,
    /// Every parameter but the `_pq_.` ones, in the order of their names; `user` and `database` included.
    pub parameters: Vec<(String, String)>,
    /// The names of `_pq_.` protocol options, none of which we know.
    pub protocol_options: Vec<String>,
}

impl StartupMessage {
    /// The value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Why a first packet is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadStartupPacket {
    /// The length word is out of range, or the body is not what it should be.
    #[error("invalid startup packet: {0}")]
    Malformed(#[from] Malformed),
    /// A major version other than 3.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    Version {
        /// Upper 16 bits.
        major: u32,
        /// Lower 16 bits.
        minor: u32,
    },
    /// A parameter that is not UTF-8: user and database names would be ambiguous.
    #[error("startup parameters must be UTF-8")]
    Encoding,
}

impl StartupPacket {
    /// The length of the first packet in `bytes`; `None` while fewer than four bytes are there.
    pub fn frame_len(bytes: &[u8]) -> Result<Option<usize>, BadStartupPacket> {
        let Ok(word) = Reader::new(bytes).u32() else {
            return Ok(None);
        };
        match usize::try_from(word) {
            Ok(len) if (8..=STARTUP_PACKET_LEN_MAX).contains(&len) => Ok(Some(len)),
            _ => Err(Malformed::Length.into()),
        }
    }

    /// Reads exactly one packet, its length word included.
    pub fn parse(packet: &[u8]) -> Result<Self, BadStartupPacket> {
        let mut reader = Reader::new(packet);
        if Self::frame_len(packet)? != Some(packet.len()) {
            return Err(Malformed::Length.into());
        }
        reader.u32()?;
        match reader.u32()? {
            SSL_REQUEST_CODE => reader.finish().map(|()| Self::SslRequest).map_err(Into::into),
            GSSENC_REQUEST_CODE => reader.finish().map(|()| Self::GssEncRequest).map_err(Into::into),
            CANCEL_REQUEST_CODE => cancel_request(reader),
            version => startup_message(version, reader, packet),
        }
    }
}

fn cancel_request(mut reader: Reader<'_>) -> Result<StartupPacket, BadStartupPacket> {
    let process_id = reader.u32()?;
    if !SECRET_LEN.contains(&reader.rest().len()) {
        return Err(Malformed::Length.into());
    }
    Ok(StartupPacket::CancelRequest(CancelKey {
        process_id,
        secret: reader.rest().into(),
    }))
}

fn startup_message(version: u32, mut reader: Reader<'_>, packet: &[u8]) -> Result<StartupPacket, BadStartupPacket> {
    if version >> 16 != 3 {
        return Err(BadStartupPacket::Version {
            major: version >> 16,
            minor: version & 0xffff,
        });
    }
    // pgwire reads on past a missing terminator and is lossy outside UTF-8, so both are settled first.
    std::str::from_utf8(reader.rest()).map_err(|_| BadStartupPacket::Encoding)?;
    loop {
        let key = reader.cstr()?;
        if key.is_empty() {
            break;
        }
        reader.cstr()?;
    }
    reader.finish()?;
    let context = DecodeContext::default();
    let startup = Startup::decode(&mut BytesMut::from(packet), &context)
        .ok()
        .flatten()
        .ok_or(BadStartupPacket::Malformed(Malformed::Value))?;
    let (protocol_options, parameters): (Vec<_>, Vec<_>) = startup
        .parameters
        .into_iter()
        .partition(|(name, _)| name.starts_with("_pq_."));
    Ok(StartupPacket::StartupMessage(StartupMessage {
        version,
        parameters,
        protocol_options: protocol_options.into_iter().map(|(name, _)| name).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(body: &[u8]) -> Vec<u8> {
        let mut packet = u32::try_from(body.len() + 4).unwrap().to_be_bytes().to_vec();
        packet.extend(body);
        packet
    }

    #[test]
    fn the_four_packets_are_told_apart() {
        assert_eq!(
            StartupPacket::parse(&packet(&80_877_103u32.to_be_bytes())),
            Ok(StartupPacket::SslRequest)
        );
        assert_eq!(
            StartupPacket::parse(&packet(&80_877_104u32.to_be_bytes())),
            Ok(StartupPacket::GssEncRequest)
        );
        let mut cancel = 80_877_102u32.to_be_bytes().to_vec();
        cancel.extend(7u32.to_be_bytes());
        cancel.extend(b"sesame!!");
        let key = CancelKey {
            process_id: 7,
            secret: b"sesame!!"[..].into(),
        };
        assert_eq!(
            StartupPacket::parse(&packet(&cancel)),
            Ok(StartupPacket::CancelRequest(key))
        );
        let mut login = super::super::PROTOCOL_3_2.to_be_bytes().to_vec();
        login.extend(b"user\0app\0_pq_.grease\0x\0database\0\0\0");
        let Ok(StartupPacket::StartupMessage(message)) = StartupPacket::parse(&packet(&login)) else {
            panic!()
        };
        assert_eq!(message.parameter("user"), Some("app"));
        assert_eq!(message.parameter("database"), Some(""));
        assert_eq!(message.protocol_options, ["_pq_.grease"]);
    }

    /// Trap 2: lengths below 8 and above PostgreSQL's limit are refused from the length word alone.
    #[test]
    fn trap_02_a_startup_length_out_of_range_is_refused() {
        for len in [0u32, 7, 10_001, u32::MAX] {
            assert!(StartupPacket::frame_len(&len.to_be_bytes()).is_err(), "{len}");
        }
        assert_eq!(StartupPacket::frame_len(&[0, 0, 0]), Ok(None));
    }

    #[test]
    fn a_missing_terminator_other_majors_and_odd_encodings_are_refused() {
        let mut open = super::super::PROTOCOL_3_0.to_be_bytes().to_vec();
        open.extend(b"user\0app\0");
        assert!(StartupPacket::parse(&packet(&open)).is_err());
        let old = (2u32 << 16).to_be_bytes();
        assert_eq!(
            StartupPacket::parse(&packet(&old)),
            Err(BadStartupPacket::Version { major: 2, minor: 0 })
        );
        let mut latin = super::super::PROTOCOL_3_0.to_be_bytes().to_vec();
        latin.extend(b"user\0\xe9\0\0");
        assert_eq!(StartupPacket::parse(&packet(&latin)), Err(BadStartupPacket::Encoding));
    }
}
