//! Python's `fnmatch`, exactly: the pattern language of tracemalloc's filters.
//!
//! | Pattern | Matches |
//! | --- | --- |
//! | `*` | any text, including `/` and newlines |
//! | `?` | any character |
//! | `[seq]` | a character of the set |
//! | `[!seq]` | a character not in the set |
//!
//! Case counts. A `[` without a closing bracket matches itself. The only escape is a set, such as
//! `[*]`.

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Glob(Vec<Token>);

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Text,
    Any,
    Char(char),
    /// Inclusive ranges. A single character is a range from itself to itself.
    Set {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// Compiles a pattern. Every text is a pattern.
    pub fn new(pattern: &str) -> Glob {
        let chars: Vec<char> = pattern.chars().collect();
        let mut tokens = Vec::new();
        let mut at = 0;
        while let Some(&c) = chars.get(at) {
            at += 1;
            match c {
                '*' if tokens.last() == Some(&Token::Text) => {}
                '*' => tokens.push(Token::Text),
                '?' => tokens.push(Token::Any),
                '[' => match set_end(&chars, at) {
                    Some(end) => {
                        tokens.push(set(&chars[at..end]));
                        at = end + 1;
                    }
                    None => tokens.push(Token::Char('[')),
                },
                c => tokens.push(Token::Char(c)),
            }
        }
        Glob(tokens)
    }

    /// Whether the whole of `text` matches. Takes at most |pattern| x |text| steps.
    pub fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut token, mut at) = (0, 0);
        // Token and position to continue at after a mismatch: the last `*` takes another character.
        let mut retry: Option<(usize, usize)> = None;
        while at < text.len() || token < self.0.len() {
            match self.0.get(token) {
                Some(Token::Text) => {
                    retry = Some((token, at + 1));
                    token += 1;
                    continue;
                }
                Some(one) if at < text.len() && one.accepts(text[at]) => {
                    (token, at) = (token + 1, at + 1);
                    continue;
                }
                _ => {}
            }
            match retry {
                Some((star, next)) if next <= text.len() => (token, at) = (star, next),
                _ => return false,
            }
        }
        true
    }
}

impl Token {
    fn accepts(&self, c: char) -> bool {
        match self {
            Token::Text => false,
            Token::Any => true,
            Token::Char(own) => *own == c,
            Token::Set { negated, ranges } => ranges.iter().any(|&(low, high)| (low..=high).contains(&c)) != *negated,
        }
    }
}

/// Returns the position of the `]` of the set at `start`. A `]` right at the start, or behind `!`,
/// is a member of the set.
fn set_end(chars: &[char], start: usize) -> Option<usize> {
    let mut first = start;
    if chars.get(first) == Some(&'!') {
        first += 1;
    }
    if chars.get(first) == Some(&']') {
        first += 1;
    }
    (first..chars.len()).find(|&i| chars[i] == ']')
}

/// Parses the set in `stuff`, by the steps of `fnmatch.translate`: hyphens of ranges cut the set
/// into chunks, and a backward range is dropped with both ends.
fn set(stuff: &[char]) -> Token {
    let mut chunks: Vec<Vec<char>> = Vec::new();
    let (mut start, mut from) = (0, if stuff.first() == Some(&'!') { 2 } else { 1 });
    while let Some(hyphen) = (from..stuff.len()).find(|&i| stuff[i] == '-') {
        chunks.push(stuff[start..hyphen].to_vec());
        start = hyphen + 1;
        from = hyphen + 3;
    }
    match (&stuff[start..], chunks.last_mut()) {
        ([], Some(last)) => last.push('-'),
        (rest, _) => chunks.push(rest.to_vec()),
    }
    for i in (1..chunks.len()).rev() {
        if chunks[i - 1].last() > chunks[i].first() {
            let rest = chunks.remove(i);
            chunks[i - 1].pop();
            chunks[i - 1].extend(&rest[1..]);
        }
    }
    ranges(&chunks)
}

fn ranges(chunks: &[Vec<char>]) -> Token {
    let negated = chunks[0].first() == Some(&'!');
    let mut ranges = Vec::new();
    for (i, chunk) in chunks.iter().enumerate() {
        let members = if i == 0 && negated { &chunk[1..] } else { &chunk[..] };
        ranges.extend(members.iter().map(|&c| (c, c)));
        if let (Some(&low), Some(next)) = (members.last(), chunks.get(i + 1)) {
            ranges.push((low, next[0]));
        }
    }
    Token::Set { negated, ranges }
}

#[cfg(test)]
mod tests {
    use super::Glob;

    #[test]
    fn matches_as_fnmatch_does() {
        for (pattern, text, expected) in [
            ("*.c", "/src/a.c", true),
            ("*.c", "a.C", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[!a-c]x", "dx", true),
            ("[]]", "]", true),
            ("[!]]", "]", false),
            ("[", "[", true),
            ("[a", "[a", true),
            ("[z-a]", "z", false),
            ("[!z-a]", "z", true),
            ("[a-]", "-", true),
            ("[-a]", "-", true),
            ("[a-c-e]", "-", true),
            ("[a-c-e]", "d", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("**a*", "bab", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("\u{e9}?", "\u{e9}\u{2603}", true),
            ("*", "a\nb", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern:?} on {text:?}");
        }
    }
}
