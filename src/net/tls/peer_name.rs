//! Whether a server's certificate is for the host that we wanted: libpq's rules for verify-full (manual: libpq-ssl,
//! "Client Verification of Server Certificates").

use std::net::IpAddr;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::certificate;

/// Compares. The error says which names the certificate has.
///
/// The subject's common name counts only where no alternative name of the host's own kind (DNS name or IP address) is
/// there. A wildcard stands for one whole leftmost label, and never for part of an address.
pub(super) fn check(certificate: &X509Certificate<'_>, host: &str) -> Result<(), String> {
    if host.is_empty() {
        return Err("a host name is needed to verify the server's certificate".into());
    }
    let address = host.parse::<IpAddr>().ok();
    let mut names = Vec::new();
    let mut common_name_counts = true;
    let alternative = certificate.subject_alternative_name().map_err(|_| unreadable())?;
    for name in alternative.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName(name) => {
                common_name_counts &= address.is_some();
                if matches(name, host, address) {
                    return Ok(());
                }
                names.push((*name).to_owned());
            }
            GeneralName::IPAddress(octets) => {
                common_name_counts &= address.is_none();
                let name = read_address(octets).ok_or_else(unreadable)?;
                if address == Some(name) {
                    return Ok(());
                }
                names.push(name.to_string());
            }
            // A name that isn't text: whose kind is unknown, so the common name must not stand in for it.
            GeneralName::Invalid(..) => return Err(unreadable()),
            _ => {}
        }
    }
    if common_name_counts {
        let name = certificate::common_name(certificate)
            .map_err(|_| unreadable())?
            .unwrap_or_default();
        if matches(name, host, address) {
            return Ok(());
        }
        names.push(name.to_owned());
    }
    Err(mismatch(&names, host))
}

fn matches(pattern: &str, host: &str, address: Option<IpAddr>) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    match (pattern.strip_prefix('*'), host.split_once('.')) {
        (Some(rest), Some((label, parent))) if address.is_none() && !label.is_empty() => rest
            .strip_prefix('.')
            .is_some_and(|rest| rest.eq_ignore_ascii_case(parent)),
        _ => false,
    }
}

fn read_address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        _ => None,
    }
}

fn unreadable() -> String {
    "the names in the server's certificate can't be read".into()
}

fn mismatch(names: &[String], host: &str) -> String {
    let first = names.first().map_or("", String::as_str).escape_debug();
    match names.len() {
        0 | 1 => format!("server certificate for \"{first}\" does not match host name \"{host}\""),
        2 => format!("server certificate for \"{first}\" (and 1 other name) does not match host name \"{host}\""),
        more => format!(
            "server certificate for \"{first}\" (and {} other names) does not match host name \"{host}\"",
            more - 1
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_one_whole_leftmost_label() {
        for (pattern, host, expected) in [
            ("db.example", "DB.example", true),
            ("*.example", "db.example", true),
            ("*.example", "a.db.example", false),
            ("*.example", "example", false),
            ("*.example", ".example", false),
            ("*", "db.example", false),
            ("d*.example", "db.example", false),
            ("*b.example", "db.example", false),
            ("", "db.example", false),
            ("db.example", "db.example.evil", false),
        ] {
            assert_eq!(matches(pattern, host, None), expected, "{pattern} {host}");
        }
        assert!(!matches("*.0.0.1", "127.0.0.1", Some("127.0.0.1".parse().unwrap())));
    }
}
