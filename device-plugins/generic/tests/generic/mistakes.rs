//! What the file says wrong is named with its line and with what to write.

use std::fs;

use tombolo_device_generic::config::Config;

const GOOD: &str = "[[resource]]\nname = \"example.com/thing\"\n[[resource.match]]\npath = \"/dev/video*\"\n";

#[test]
fn every_mistake_is_named_with_its_line() {
    for (text, line, words) in [
        (
            "[[resource]]\nname = \"camera\"\n[[resource.match]]\npath = \"/dev/x\"",
            2,
            "write vendor-domain/name",
        ),
        (
            "[[resource]]\nname = \"a.b/c\"\nshared = 0\n[[resource.match]]\npath = \"/dev/x\"",
            3,
            "write 1 to 1000",
        ),
        (
            "[[resource]]\nname = \"a.b/c\"\npermissions = \"rx\"\n[[resource.match]]\npath = \"/dev/x\"",
            3,
            "like \"rw\"",
        ),
        ("[[resource]]\nname = \"a.b/c\"\n[[resource.match]]\n", 3, "at least one of path, usb, pci"),
        ("[[resource]]\nname = \"a.b/c\"\n", 1, "missing field `match`"),
        ("[[resource]]\nname = \"a.b/c\"\n[[resource.match]]\npath = \"/etc/*\"", 4, "like \"/dev/video*\""),
        (
            "[[resource]]\nname = \"a.b/c\"\n[[resource.match]]\nusb = [\"1a6e:089a\", \"18d1\"]",
            4,
            "write vendor:product",
        ),
        ("[[resource]]\nname = \"a.b/c\"\n[[resource.match]]\npci_class = \"0x03\"", 4, "hexadecimal digits"),
        (
            "[[resource]]\nname = \"a.b/c\"\n[[resource.match]]\npth = \"/dev/x\"",
            4,
            "unknown field `pth`, expected one of `path`",
        ),
        ("[[resource]]\nname = \"a.b/c\"\n[[resource.match]]\nusb = \"1:2\"", 4, "like \"1a6e:089a\""),
        (
            "[[resource]]\nname = \"a.b/c\"\n[[resource.match]]\nusb = \"1a6e:*\"\npci = \"1a6e:*\"",
            3,
            "write two",
        ),
        (
            "[[resource]]\nname = \"a.b/c\"\nenv = { A = \"{path}\" }\n[[resource.match]]\npath = \"/dev/x\"",
            3,
            "{paths} or {ids}",
        ),
        (
            "[[resource]]\nname = \"a.b/c\"\nat = \"camera\"\n[[resource.match]]\npath = \"/dev/x\"",
            3,
            "/dev/camera{n}",
        ),
        (
            "[[resource]]\nname = \"a.b/c\"\n[[resource.match]]\nudev = { A = \"[\" }",
            4,
            "write text with *, ?",
        ),
        ("interval_s = 0\n", 1, "nonzero"),
    ] {
        let error = Config::parse(text).unwrap_err();
        assert!(error.contains(&format!("line {line},")) && error.contains(words), "{text}\n{error}");
    }
}

#[test]
fn a_resource_stands_in_one_place() {
    let twice = Config::parse(&format!("{GOOD}{GOOD}")).unwrap_err();
    assert!(twice.contains("example.com/thing is there twice"), "{twice}");
    let directory = tempfile::tempdir().unwrap();
    let load = || Config::load(&[directory.path().to_owned()]).map(|config| config.resources.len());
    assert!(load().unwrap_err().to_string().contains("write a [[resource]]"));
    fs::write(directory.path().join("a.toml"), GOOD).unwrap();
    fs::write(directory.path().join("notes.txt"), "not a file of this program").unwrap();
    assert_eq!(load().unwrap(), 1);
    fs::write(directory.path().join("b.toml"), GOOD).unwrap();
    let error = load().unwrap_err().to_string();
    assert!(
        error.contains("a.toml") && error.contains("b.toml") && error.contains("example.com/thing"),
        "{error}"
    );
    fs::write(directory.path().join("b.toml"), "x").unwrap();
    assert!(load().unwrap_err().to_string().contains("b.toml"));
}
