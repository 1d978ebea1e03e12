//! The small notations of Kubernetes that users' values are written in: names, label values, image references. The texts
//! say what is wrong in Kubernetes' words. Knows no field.

const DNS1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const DNS1123_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS1123_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const NAME_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// What is wrong with a value, several things at most.
pub(super) type Complaints = Vec<String>;

pub(super) fn dns1035_label(text: &str) -> Complaints {
    let shaped = is_label(text) && text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
    complaints(text, 63, shaped, DNS1035_LABEL)
}

pub(super) fn dns1123_label(text: &str) -> Complaints {
    complaints(text, 63, is_label(text), DNS1123_LABEL)
}

pub(super) fn dns1123_subdomain(text: &str) -> Complaints {
    complaints(text, 253, text.split('.').all(is_label), DNS1123_SUBDOMAIN)
}

/// A name as the start of a generated one: it may end in a dash.
pub(super) fn prefix_of(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(head) if !head.is_empty() => format!("{head}a"),
        _ => text.to_owned(),
    }
}

/// `[prefix/]name`, as label and annotation keys are.
pub(super) fn qualified_name(text: &str) -> Complaints {
    let (prefix, name) = match text.split_once('/') {
        Some((_, name)) if name.contains('/') => {
            return vec![format!(
                "a qualified name {NAME_PART} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let mut found = Vec::new();
    match prefix {
        Some("") => found.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => {
            found.extend(dns1123_subdomain(prefix).iter().map(|why| format!("prefix part {why}")))
        }
        None => {}
    }
    if name.is_empty() {
        found.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        found.push("name part must be no more than 63 characters".to_owned());
    }
    if !is_name(name) {
        found.push(format!("name part {NAME_PART}"));
    }
    found
}

pub(super) fn label_value(text: &str) -> Complaints {
    complaints(text, 63, text.is_empty() || is_name(text), LABEL_VALUE)
}

fn complaints(text: &str, max: usize, shaped: bool, shape: &str) -> Complaints {
    let mut found = Vec::new();
    if text.len() > max {
        found.push(format!("must be no more than {max} characters"));
    }
    if !shaped {
        found.push(shape.to_owned());
    }
    found
}

/// The shape of a DNS label, whatever its length.
fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    text.bytes().all(inner) && edge(text.as_bytes().first()) && edge(text.as_bytes().last())
}

/// Whether `text` names an image: `[registry/]repository[:tag][@digest]`, what is left out filled in.
pub(super) fn is_image_reference(text: &str) -> bool {
    is_tagged(text) || is_digested(text)
}

fn is_tagged(text: &str) -> bool {
    match text.rsplit_once(':') {
        Some((base, tag)) if !tag.contains('/') => is_tag(tag) && is_repository(base),
        _ => is_repository(text),
    }
}

fn is_digested(text: &str) -> bool {
    let Some((base, digest)) = text.split_once('@') else { return false };
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    let digest = digest.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(is_hex));
    digest && is_tagged(base)
}

fn is_tag(tag: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    (1..=127).contains(&tag.len()) && tag.bytes().all(allowed)
}

fn is_repository(name: &str) -> bool {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, name),
    };
    let allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-' | b'.' | b'/');
    let repository = (2..=255).contains(&repository.len()) && repository.bytes().all(allowed);
    repository && registry.is_none_or(is_authority)
}

fn is_authority(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => (address, port),
            None => return false,
        },
        None => registry.find(':').map_or((registry, ""), |colon| registry.split_at(colon)),
    };
    let in_host = |c: char| c.is_ascii_alphanumeric() || "-._~:".contains(c);
    let port_ok =
        port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()));
    host.chars().all(in_host) && port_ok
}

/// A path with `.`, `..` and doubled slashes resolved, as Go cleans it.
pub(super) fn clean_path(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_references() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let good = [
            "ab",
            "ubuntu",
            "gcr.io/x/y:latest",
            "localhost:5000/ab",
            "10.0.0.1:5000/ab",
            "[::1]:5000/ab",
            // To the reference's parser this is the registry `http:`, with an empty port.
            "http://x/ab",
        ];
        for text in good {
            assert!(is_image_reference(text), "{text}");
            assert!(is_image_reference(&format!("{text}@{digest}")), "{text}");
        }
        let bad = ["", "a", "foo:bar:baz", "UPPER/ab", "ab:", "ab@sha256:short", "ab c", "é.io/ab:x:y"];
        for text in bad {
            assert!(!is_image_reference(text), "{text}");
        }
    }

    #[test]
    fn paths_are_cleaned() {
        for (path, clean) in
            [("/dev/", "/dev"), ("//", "/"), ("/a/../..", "/"), ("a/./b", "a/b"), ("..", ".."), ("", ".")]
        {
            assert_eq!(clean_path(path), clean, "{path}");
        }
    }
}
