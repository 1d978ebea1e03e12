//! What is wrong with a text that is no YAML, in words that say what to do. The library's own words are for programmers.

/// What the library says, in part, and what a person should read instead.
const WORDS: [(&str, &str); 13] = [
    ("found a tab", "a tab stands where YAML wants spaces: indent with spaces"),
    (
        "did not find expected key",
        "the indentation fits no line above: begin the line where the fields it belongs with begin",
    ),
    (
        "did not find expected '-' indicator",
        "this line belongs to a list: begin it with '- ', or indent it further",
    ),
    ("unclosed bracket '['", "'[' is never closed: add ']'"),
    ("unclosed bracket '{'", "'{' is never closed: add '}'"),
    ("unclosed quote", "the quote is never closed: add the closing one"),
    (
        "unknown anchor",
        "the name behind '*' is not set anywhere before: set it with '&', or put the text in quotes",
    ),
    (
        "mapping values are not allowed",
        "there is a second ': ' in one line: put the text in quotes, or the field on a line of its own",
    ),
    ("simple key expected ':'", "there is no ':' behind the field's name: write NAME: VALUE"),
    ("unexpected character", "a text cannot begin with this character: put it in quotes"),
    (
        "invalid trailing content",
        "something stands behind the closing quote: a comma or a new line is missing",
    ),
    ("expected string scalar", "a field's name must be a text"),
    ("budget", "the file is nested too deeply, or too large in some other way: split it"),
];

/// The library's message for a person, without the place, which is told apart.
pub(super) fn told(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    match WORDS.iter().find(|(said, _)| line.contains(said)) {
        Some((_, words)) => (*words).to_owned(),
        None => line.rsplit_once(" at line ").map_or(line, |(why, _)| why).trim().to_owned(),
    }
}

/// The path of the field in which a line stands, by the indentation of the lines above it: good enough to find the place
/// in a file that cannot be read. Lines count from 1.
pub(super) fn field_around(text: &str, line: u64) -> String {
    let above = usize::try_from(line).unwrap_or(usize::MAX);
    let lines: Vec<&str> = text.lines().take(above).collect();
    let mut path = Vec::new();
    let mut limit = usize::MAX;
    for line in lines.iter().rev() {
        if line.starts_with("---") {
            break;
        }
        // An entry of a list belongs to the field above it, which may begin where the entry does.
        let (indentation, content, of_list) = measured(line);
        if content.is_empty() || content.starts_with('#') || indentation >= limit {
            continue;
        }
        let name = content.split_once(':').map(|(name, _)| name.trim().trim_matches(['"', '\'']));
        limit = if of_list { line.len() - line.trim_start().len() + 1 } else { indentation };
        if let Some(name) = name.filter(|name| is_name(name)) {
            path.push(name);
        }
        if limit == 0 {
            break;
        }
    }
    path.reverse();
    path.join(".")
}

/// Where a line's content begins, what it is, and whether it begins an entry of a list.
fn measured(line: &str) -> (usize, &str, bool) {
    let content = line.trim_start();
    match content.strip_prefix("- ") {
        Some(entry) => (line.len() - entry.trim_start().len(), entry.trim_start(), true),
        None => (line.len() - content.len(), content, false),
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "._-/".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_around_a_line_is_found_by_indentation() {
        let text = "apiVersion: v1\n# c\nspec:\n  template:\n    spec:\n      containers:\n      - image: x\n        env:\n\
                    \x20         - name: A\n            value: [\n---\nkind: B\n";
        for (line, path) in [
            (1, "apiVersion"),
            (4, "spec.template"),
            (7, "spec.template.spec.containers.image"),
            (10, "spec.template.spec.containers.env.value"),
            (12, "kind"),
            (99, "kind"),
            (0, ""),
        ] {
            assert_eq!(field_around(text, line), path, "{line}");
        }
        assert_eq!(field_around("{\"a\": [\n", 1), "");
    }

    #[test]
    fn words_nobody_translated_stay_without_their_place() {
        assert_eq!(told("something new at line 3, column 7\nmore"), "something new");
        assert_eq!(
            told("unclosed quote at line 3, column 7"),
            "the quote is never closed: add the closing one"
        );
    }
}
