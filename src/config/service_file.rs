//! libpq's connection service file, `pg_service.conf` (manual: libpq-pgservice): INI sections of parameters.

use super::conninfo::{self, Parameters};

/// The parameters of a service, or `None` where the file has no such section.
pub(super) fn find(text: &str, service: &str) -> Result<Option<Parameters>, String> {
    let mut found = None;
    let mut is_in_section = false;
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(name) = line.strip_prefix('[') {
            // libpq reads the first section of the name only.
            if is_in_section {
                break;
            }
            is_in_section = name.strip_suffix(']') == Some(service);
            if is_in_section {
                found = Some(Parameters::new());
            }
            continue;
        }
        let Some(parameters) = found.as_mut().filter(|_| is_in_section) else {
            continue;
        };
        if line.starts_with("ldap") {
            return Err("LDAP lookups in service files are not supported".into());
        }
        let (name, value) = line.split_once('=').ok_or("a line of the service file lacks its =")?;
        match name.trim() {
            "service" | "servicefile" => return Err("a service can't name another service".into()),
            // The first setting of a key wins inside a service file.
            name if parameters.contains_key(name) => {}
            name => conninfo::store(parameters, name, value.trim().to_owned())?,
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str =
        "# comment\n[other]\nhost=x\n\n[mydb]\nhost=somehost\nport=5433\nuser=admin\nport=1\n[later]\nhost=y\n";

    #[test]
    fn a_service_is_its_section() {
        let service = find(FILE, "mydb").unwrap().unwrap();
        assert_eq!(
            service.into_iter().collect::<Vec<_>>(),
            [
                ("host", "somehost".to_owned()),
                ("port", "5433".to_owned()),
                ("user", "admin".to_owned())
            ]
        );
        assert_eq!(find(FILE, "nosuch"), Ok(None));
    }

    #[test]
    fn what_a_service_can_not_say() {
        for (text, words) in [
            ("[a]\nldap://x", "LDAP"),
            ("[a]\nservice=b", "another service"),
            ("[a]\nhost", "lacks its ="),
            ("[a]\nhosst=x", "did you mean \"host\"?"),
        ] {
            assert!(find(text, "a").unwrap_err().contains(words), "{text}");
        }
    }
}
