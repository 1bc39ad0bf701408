//! Credentials from `~/.netrc`.

/// The entries of a netrc file, in its order.
#[derive(Clone, Debug, Default)]
pub struct Netrc(Vec<Entry>);

#[derive(Clone, Debug, Default)]
struct Entry {
    /// None for the `default` entry.
    machine: Option<String>,
    login: String,
    password: String,
}

impl Netrc {
    /// Read a file's content. What it does not know it skips, as macros.
    pub fn parse(text: &str) -> Self {
        let mut entries: Vec<Entry> = Vec::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            let mut words = words(line).into_iter();
            while let Some(word) = words.next() {
                match word.as_str() {
                    "machine" => {
                        entries.push(Entry { machine: words.next(), ..Entry::default() });
                    }
                    "default" => entries.push(Entry::default()),
                    "login" | "user" => set(&mut entries, words.next(), |entry| &mut entry.login),
                    "password" => set(&mut entries, words.next(), |entry| &mut entry.password),
                    "account" => drop(words.next()),
                    // A macro goes to the next empty line.
                    "macdef" => {
                        lines.by_ref().find(|line| line.trim().is_empty());
                        break;
                    }
                    _ => {}
                }
            }
        }
        Self(entries)
    }

    /// Login and password for a host; its own entry, or the default one.
    pub fn find(&self, host: &str) -> Option<(&str, &str)> {
        let host = host.trim_matches(['[', ']']);
        self.0
            .iter()
            .find(|entry| {
                entry.machine.as_deref().is_none_or(|name| name.eq_ignore_ascii_case(host))
            })
            .filter(|entry| !entry.login.is_empty())
            .map(|entry| (entry.login.as_str(), entry.password.as_str()))
    }
}

fn set(entries: &mut [Entry], value: Option<String>, field: fn(&mut Entry) -> &mut String) {
    if let (Some(entry), Some(value)) = (entries.last_mut(), value) {
        *field(entry) = value;
    }
}

/// The words of a line: separated by white space, quoted if they hold some; `#` begins a comment where
/// a word would begin. (A password may hold one inside.)
fn words(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let mut word = String::new();
        let quoted = rest.starts_with('"');
        let mut end = rest.len();
        let mut characters = rest.char_indices().skip(usize::from(quoted));
        while let Some((at, c)) = characters.next() {
            match c {
                '\\' => word.extend(characters.next().map(|(_, c)| c)),
                '"' if quoted => {
                    end = at + 1;
                    break;
                }
                c if !quoted && c.is_whitespace() => {
                    end = at;
                    break;
                }
                c => word.push(c),
            }
        }
        found.push(word);
        rest = rest[end..].trim_start();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_default() {
        let netrc = Netrc::parse(
            "# comment\nmachine a.example login me password p#1\n\
             machine b.example\n  login \"you there\"\n  password \"a\\\"b\" # end\n\
             macdef init\ncd /\nmachine trap login x password y\n\n\
             default login anonymous password mail",
        );
        assert_eq!(netrc.find("A.example"), Some(("me", "p#1")));
        assert_eq!(netrc.find("b.example"), Some(("you there", "a\"b")));
        assert_eq!(netrc.find("trap"), Some(("anonymous", "mail")));
        assert_eq!(Netrc::parse("machine a login x password y").find("b"), None);
        assert_eq!(Netrc::parse("machine").find("b"), None);
        assert_eq!(Netrc::parse("login x password").find("b"), None);
    }
}
