//! Ids of devices that stay the same: over a restart, over unplugging and plugging, over a change of the kernel's numbers.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tombolo_device_sdk::DeviceId;

use crate::config::Identity;
use tombolo_device_sdk::machine::{Hardware, Node, read};

/// The longest id that is made of readable parts; the SDK allows 63, and a share's number is to follow.
const ID_CHARS_MAX: usize = 56;

/// Bytes of the digest that stands for the end of a longer id.
const DIGEST_BYTES: usize = 6;

/// Serial numbers that more than one USB device claims: the makers of some give all of them the same.
pub(crate) struct Serials(BTreeMap<String, usize>);

impl Serials {
    pub(crate) fn count(hardware: &[Hardware]) -> Self {
        let mut counts = BTreeMap::new();
        for one in hardware {
            if let Hardware::Usb { serial: Some(serial), .. } = one {
                *counts.entry(serial.clone()).or_default() += 1;
            }
        }
        Self(counts)
    }

    fn is_unique(&self, serial: &str) -> bool {
        self.0.get(serial).is_none_or(|count| *count == 1)
    }
}

/// `usb-SERIAL`, `usb-PORT` or `pci-ADDRESS`
pub(crate) fn of_hardware(hardware: &Hardware, identity: Identity, serials: &Serials) -> String {
    let place = hardware.place();
    match hardware {
        Hardware::Pci { .. } => format!("pci-{place}"),
        Hardware::Usb { serial: Some(serial), .. } if identity == Identity::Serial => {
            if serials.is_unique(serial) { format!("usb-{serial}") } else { format!("usb-{serial}-{place}") }
        }
        Hardware::Usb { .. } => format!("usb-{place}"),
    }
}

/// The id of the hardware and which of its nodes it is; of nodes without hardware, the path.
pub(crate) fn of_node(node: &Node, identity: Identity, serials: &Serials) -> String {
    let below = node.sysfs.as_deref().and_then(|directory| Some((directory, Hardware::of(directory)?)));
    match below {
        Some((directory, hardware)) if directory == hardware.directory() => {
            of_hardware(&hardware, identity, serials)
        }
        Some((directory, hardware)) => {
            format!(
                "{}-{}",
                of_hardware(&hardware, identity, serials),
                which(directory, hardware.directory())
            )
        }
        None => node.shown.strip_prefix("/dev").unwrap_or(&node.shown).display().to_string(),
    }
}

/// Which node of its hardware this is, without the number that the kernel counts over all hardware.
fn which(directory: &Path, hardware: &Path) -> String {
    let below = directory.strip_prefix(hardware).unwrap_or(directory);
    // A USB device's interfaces are called after it: `1-1.4:1.0`.
    let interface =
        below.iter().next().and_then(|first| first.to_str()?.split_once(':')).map(|(_, number)| number);
    let own = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let port = directory.parent().and_then(Path::parent).and_then(|port| read(port, "port_number"));
    let number = read(directory, "index").or(port).unwrap_or_else(|| order(directory).to_string());
    let kind = letters(&own);
    interface.map_or_else(|| format!("{kind}{number}"), |interface| format!("{interface}-{kind}{number}"))
}

/// How many of its kind beside it come before it.
fn order(directory: &Path) -> usize {
    let key = |name: &str| (name.len(), name.to_owned());
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let own = name(directory);
    let siblings =
        directory.parent().and_then(|parent| parent.read_dir().ok()).into_iter().flatten().flatten();
    siblings
        .map(|entry| name(&entry.path()))
        .filter(|other| letters(other) == letters(&own) && key(other) < key(&own))
        .count()
}

/// A name without the number at its end.
fn letters(name: &str) -> &str {
    name.trim_end_matches(|char: char| char.is_ascii_digit())
}

/// Makes a text an id: what an id cannot hold is replaced, what is too long is cut and told apart by a digest.
pub(crate) fn id(text: &str, share: Option<u32>) -> DeviceId {
    let plain: String = text
        .chars()
        .map(|char| if char.is_ascii_alphanumeric() || "-_.:".contains(char) { char } else { '_' })
        .collect();
    let end = share.map(|share| format!("::{share}")).unwrap_or_default();
    let readable = if plain.len() <= ID_CHARS_MAX && plain == text.replace('/', "_") {
        plain
    } else {
        let digest = Sha256::digest(text);
        let digest: String = digest.iter().take(DIGEST_BYTES).map(|byte| format!("{byte:02x}")).collect();
        let kept = plain.len().min(ID_CHARS_MAX - 2 * DIGEST_BYTES - 1);
        format!("{}-{digest}", &plain[..kept])
    };
    format!("{readable}{end}").parse().expect("short, not empty, and of visible characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_becomes_an_id_of_its_own() {
        assert_eq!(id("usb-1-1.4", None).as_str(), "usb-1-1.4");
        assert_eq!(id("usb-1-1.4", Some(12)).as_str(), "usb-1-1.4::12");
        assert_eq!(id("dri/renderD128", None).as_str(), "dri_renderD128");
        assert_ne!(id("usb-a b", None), id("usb-a\tb", None));
        let long = "usb-".to_owned() + &"é".repeat(200);
        assert_ne!(id(&long, None), id(&(long.clone() + "1"), None));
        assert!(id(&long, Some(999)).as_str().len() <= 63);
    }
}
