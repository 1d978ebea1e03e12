//! How a program is configured: one TOML file with environment overrides, and the section about logs that every program
//! has. It must not know what else can be set: that is a plain struct in the program, with a default for every key.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    pub format: LogFormat,
    /// As `tracing`'s filters: `info`, `debug`, `tombolo_agent=debug,info`.
    pub level: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Human, level: "info".into() }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {path}")]
    Read { path: String, source: std::io::Error },
    #[error("{origin}: {message}")]
    Invalid { origin: String, message: String },
}

/// Reads `file` (defaults only, if `None`), then applies the overrides among `env`: with the prefix `TOMBOLO_HUB__`,
/// `TOMBOLO_HUB__API__LISTEN=…` overrides `[api] listen`. `check` says what is wrong with values that fit each alone.
pub fn load<T: DeserializeOwned>(
    file: Option<&Path>,
    prefix: &str,
    env: impl Iterator<Item = (String, String)>,
    check: impl FnOnce(T) -> Result<T, String>,
) -> Result<T, ConfigError> {
    let (origin, text) = match file {
        None => ("defaults".to_owned(), String::new()),
        Some(path) => {
            let origin = path.display().to_string();
            let text = std::fs::read_to_string(path)
                .map_err(|source| ConfigError::Read { path: origin.clone(), source })?;
            (origin, text)
        }
    };
    let invalid = |message: String| ConfigError::Invalid { origin: origin.clone(), message };
    // Read once as it stands, for messages that show the line; once more with the overrides in place.
    toml::from_str::<T>(&text).map_err(|error| invalid(error.to_string()))?;
    let mut table: toml::Table = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
    for (name, value) in env {
        if let Some(path) = name.strip_prefix(prefix) {
            override_key(&mut table, path, &value)
                .map_err(|message| ConfigError::Invalid { origin: name.clone(), message })?;
        }
    }
    // Without its last line end it says the value and its key.
    let told = |error: toml::de::Error| invalid(error.to_string().trim().replace('\n', " "));
    check(table.try_into().map_err(told)?).map_err(invalid)
}

/// Sets `path` (`API__LISTEN`) in `table`. Numbers and booleans are read as such, everything else is a string.
fn override_key(table: &mut toml::Table, path: &str, value: &str) -> Result<(), String> {
    let parts: Vec<String> = path.split("__").map(str::to_lowercase).collect();
    let (last, sections) = parts.split_last().ok_or("empty name")?;
    let mut at = table;
    for section in sections {
        at = at
            .entry(section.clone())
            .or_insert_with(|| toml::Table::new().into())
            .as_table_mut()
            .ok_or_else(|| format!("{section} is not a section"))?;
    }
    let parsed = match (value.parse::<i64>(), value.parse::<bool>()) {
        (Ok(number), _) => number.into(),
        (_, Ok(flag)) => flag.into(),
        _ => value.into(),
    };
    at.insert(last.clone(), parsed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Bakery {
        name: String,
        oven: Oven,
        log: LogConfig,
    }

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Oven {
        heat: u32,
        open: bool,
    }

    fn read(text: &str, env: &[(&str, &str)]) -> Result<Bakery, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let check =
            |it: Bakery| if it.oven.heat < 300 { Ok(it) } else { Err("oven.heat: too hot".to_owned()) };
        load(Some(file.path()), "BAKERY__", env, check).map_err(|error| error.to_string())
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let env = [("BAKERY__OVEN__HEAT", "220"), ("BAKERY__OVEN__OPEN", "true"), ("OTHER__NAME", "no")];
        let bakery = read("name = \"corner\"\n[oven]\nheat = 180\n[log]\nformat = \"json\"\n", &env).unwrap();
        assert_eq!((bakery.name.as_str(), bakery.oven), ("corner", Oven { heat: 220, open: true }));
        assert_eq!(bakery.log, LogConfig { format: LogFormat::Json, level: "info".into() });
        assert_eq!(load(None, "BAKERY__", std::iter::empty(), Ok).ok(), Some(Bakery::default()));
    }

    #[test]
    fn a_mistake_is_named_with_where_it_stands() {
        let missing =
            load(Some(Path::new("/nowhere/it.toml")), "BAKERY__", std::iter::empty(), Ok::<Bakery, _>);
        assert!(missing.unwrap_err().to_string().contains("/nowhere/it.toml"));
        for (text, env, named) in [
            ("nam = \"a\"", None, "nam"),
            ("[oven]\nheat = \"x\"", None, "heat = \"x\""),
            ("[oven]\nheat = 400", None, "oven.heat: too hot"),
            ("", Some(("BAKERY__OVEN__HAET", "1")), "haet"),
            ("", Some(("BAKERY__OVEN__HEAT", "hot")), "oven.heat"),
            (
                "name = \"a\"",
                Some(("BAKERY__NAME__FIRST", "b")),
                "BAKERY__NAME__FIRST: name is not a section",
            ),
        ] {
            let error = read(text, env.as_slice()).unwrap_err();
            assert!(error.contains(named), "{text} {env:?}: {error}");
        }
    }
}
