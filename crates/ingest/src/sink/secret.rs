//! A secret in a configuration: text, or `file:PATH` or `env:NAME` that holds it.

/// The secret itself, without the line end behind it.
///
/// # Errors
/// One line for people: where it was looked for, never what was found.
pub fn look_up(text: &str) -> Result<String, String> {
    let found = if let Some(path) = text.strip_prefix("file:") {
        std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?
    } else if let Some(name) = text.strip_prefix("env:") {
        std::env::var(name).map_err(|e| format!("{name}: {e}"))?
    } else {
        text.to_owned()
    };
    Ok(found.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_looked_up_where_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, "pass word\r\n").unwrap();
        assert_eq!(look_up(&format!("file:{}", path.display())).unwrap(), "pass word");
        assert_eq!(look_up("x").unwrap(), "x");
        assert!(look_up("env:NO_SUCH_VARIABLE").unwrap_err().contains("NO_SUCH_VARIABLE"));
        assert!(look_up("file:/no/such/file").unwrap_err().contains("/no/such/file"));
    }
}
