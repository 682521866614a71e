//! Times of the history, as typed and as shown.
//!
//! | Typed | Meaning |
//! | --- | --- |
//! | `-10m`, `-1h30m` | before the end of the history, which is the snapshot |
//! | `+90s` | after the begin of the history |
//! | `03:00`, `03:00:15` | the last such time of day in the history |
//! | `2026-11-28T03:00` | date and time |
//! | `mark:deploy` | the last mark whose text begins so |
//!
//! Times of day are in the time zone of the recording, which the snapshot has; with a `Z` they are
//! UTC.

use heapline_shared_format::snapshot::History;
use heapline_shared_format::snapshot::history::USER_MARK;
use heapline_shared_format::text::{civil, printable};
use std::str::FromStr;

const SECOND: u64 = 1000;
const DAY: u64 = 24 * 3600 * SECOND;
/// A time this far behind the end of the history is the end: people round.
const GRACE: u64 = 60 * SECOND;

/// A time as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Time {
    /// Milliseconds before the end of the history.
    BeforeEnd(u64),
    /// Milliseconds since the begin of the history.
    AfterBegin(u64),
    /// Milliseconds since midnight, and whether midnight is UTC's.
    OfDay(u64, bool),
    /// Milliseconds since 1970, and whether they are UTC's.
    OfDate(u64, bool),
    /// The beginning of the text of a mark.
    Mark(String),
}

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Time, String> {
        let parsed = if let Some(name) = text.strip_prefix("mark:") {
            (!name.is_empty()).then(|| Time::Mark(name.to_owned()))
        } else if let Some(span) = text.strip_prefix('-') {
            duration(span).map(Time::BeforeEnd)
        } else if let Some(span) = text.strip_prefix('+') {
            duration(span).map(Time::AfterBegin)
        } else {
            let (clock, is_utc) = text.strip_suffix('Z').map_or((text, false), |clock| (clock, true));
            match clock.split_once('T') {
                None => time_of_day(clock).map(|millis| Time::OfDay(millis, is_utc)),
                Some((date, clock)) => date_of(date)
                    .zip(time_of_day(clock))
                    .map(|(days, millis)| Time::OfDate(days * DAY + millis, is_utc)),
            }
        };
        parsed.ok_or_else(|| {
            format!(
                "{text:?} is none: 03:00, 2026-11-28T03:00 (both with Z for UTC), -10m, +90s and mark:NAME are times"
            )
        })
    }
}

impl Time {
    /// Returns the time in milliseconds since the begin of a history.
    ///
    /// # Errors
    ///
    /// Fails with a sentence for a time outside of the history, and for an unknown mark.
    pub fn within(&self, history: &History) -> Result<u64, String> {
        let end = history.end();
        let zone = |is_utc: bool| i64::from(if is_utc { 0 } else { history.utc_offset }) * 1000;
        let since_begin =
            |of_date: u64, is_utc: bool| i128::from(of_date) - i128::from(zone(is_utc)) - i128::from(history.begun);
        let time = match *self {
            Time::BeforeEnd(span) => i128::from(end) - i128::from(span),
            Time::AfterBegin(span) => span.into(),
            Time::OfDate(of_date, is_utc) => since_begin(of_date, is_utc),
            Time::OfDay(of_day, is_utc) => {
                // The last such time before the end, and the grace.
                let last = i128::from(history.begun) + i128::from(end) + i128::from(GRACE) + i128::from(zone(is_utc));
                let back = (last - i128::from(of_day)).rem_euclid(DAY.into());
                last - back - i128::from(zone(is_utc)) - i128::from(history.begun)
            }
            Time::Mark(ref name) => return mark(history, name),
        };
        let (begun, ended) =
            (local(history.begun, history.utc_offset), local(history.begun.saturating_add(end), history.utc_offset));
        match u64::try_from(time) {
            Ok(time) if time <= end.saturating_add(GRACE) => Ok(time.min(end)),
            Ok(_) => Err(format!("the time is behind the end of the history: it reaches from {begun} to {ended}")),
            Err(_) => Err(format!("the time is before the begin of the history: it reaches from {begun} to {ended}")),
        }
    }
}

/// Returns the time of the last mark with this name: a mark of the user, or a kind of event.
fn mark(history: &History, name: &str) -> Result<u64, String> {
    let mut last_first = history.marks.iter().rev();
    let is_users = |kind: &str| kind == USER_MARK;
    let of_user = last_first.clone().find(|mark| is_users(&mark.kind) && mark.text.starts_with(name));
    if let Some(mark) = of_user.or_else(|| last_first.find(|mark| !is_users(&mark.kind) && mark.kind == name)) {
        return Ok(mark.at.min(history.end()));
    }
    /// Most marks named in the message.
    const NAMED: usize = 5;
    let mut known: Vec<String> = Vec::new();
    for mark in history.marks.iter().rev() {
        let name = printable(if is_users(&mark.kind) { &mark.text } else { &mark.kind }).into_owned();
        if known.len() < NAMED && !known.contains(&name) {
            known.push(name);
        }
    }
    Err(format!("no mark of the history begins with {name:?}: its last marks are {}", known.join(", ")))
}

/// Returns the milliseconds of `1h30m`.
pub fn duration(text: &str) -> Option<u64> {
    let mut sum = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(digits);
        let letters = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(letters);
        let unit = match unit {
            "ms" => 1,
            "s" => SECOND,
            "m" | "min" => 60 * SECOND,
            "h" => 3600 * SECOND,
            "d" => DAY,
            _ => return None,
        };
        sum = sum.checked_add(part(number, unit)?)?;
        rest = behind;
    }
    (!text.is_empty()).then_some(sum)
}

/// Returns `number` units, for a number with at most three decimals.
fn part(number: &str, unit: u64) -> Option<u64> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let thousandths = match decimals.len() {
        0 => 0,
        length @ 1..=3 => decimals.parse::<u64>().ok()? * 10_u64.pow(u32::try_from(3 - length).ok()?),
        _ => return None,
    };
    let whole: u64 = whole.parse().ok()?;
    whole.checked_mul(unit)?.checked_add(thousandths * unit / 1000)
}

/// Returns the milliseconds of `HH:MM`, `HH:MM:SS` or `HH:MM:SS.mmm`.
fn time_of_day(text: &str) -> Option<u64> {
    let mut parts = text.split(':');
    let mut two = || parts.next().filter(|part| part.len() == 2)?.parse::<u64>().ok();
    let (hour, minute) = (two()?, two()?);
    let second = match parts.next() {
        None => 0,
        Some(second) if second.len() >= 2 && second.as_bytes()[..2].iter().all(u8::is_ascii_digit) => {
            part(second, SECOND)?
        }
        Some(_) => return None,
    };
    let is_time = parts.next().is_none() && hour < 24 && minute < 60 && second < 60 * SECOND;
    is_time.then_some((hour * 3600 + minute * 60) * SECOND + second)
}

/// Returns the days since 1970 of `YYYY-MM-DD`, from 1970 on.
fn date_of(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
        return None;
    }
    let number = |text: Option<&str>| text.filter(|text| text.bytes().all(|c| c.is_ascii_digit()))?.parse::<u64>().ok();
    let (year, month, day) = (number(text.get(..4))?, number(text.get(5..7))?, number(text.get(8..))?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let days = days_of(year, month, day);
    // No 31st of June.
    (civil(days) == (year, month, day)).then_some(days)
}

/// Returns the days since 1970 of a date (Howard Hinnant's days_from_civil, for years from 1970
/// on).
fn days_of(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Formats milliseconds since 1970 in a time zone, as RFC 3339; with milliseconds where they are
/// not 0.
pub fn local(millis: u64, utc_offset: i32) -> String {
    // Offsets on earth are less than a day. Others come from handmade files.
    let offset = utc_offset % 86_400;
    let shifted = millis.saturating_add_signed(i64::from(offset) * 1000);
    let (days, of_day) = (shifted / DAY, shifted % DAY);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3_600_000, of_day / 60_000 % 60, of_day / 1000 % 60);
    let fraction = if of_day % 1000 == 0 { String::new() } else { format!(".{:03}", of_day % 1000) };
    let zone = match offset {
        0 => "Z".to_owned(),
        _ => {
            let sign = if offset < 0 { '-' } else { '+' };
            format!("{sign}{:02}:{:02}", offset.unsigned_abs() / 3600, offset.unsigned_abs() / 60 % 60)
        }
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}{zone}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use heapline_shared_format::snapshot::history::{Mark, Step};

    /// A history from 2026-11-27T22:30 to 2026-11-28T04:00:40, one hour east of UTC.
    fn history() -> History {
        let mark = |at, kind: &str, text: &str| Mark { at, kind: kind.to_owned(), text: text.to_owned() };
        History {
            begun: date_of("2026-11-27").expect("a date") * DAY + (21 * 3600 + 30 * 60) * SECOND,
            utc_offset: 3600,
            apart: 4096,
            steps: vec![Step { end: (5 * 3600 + 30 * 60 + 40) * SECOND, ..Step::default() }],
            marks: vec![
                mark(0, "start", ""),
                mark(5, USER_MARK, "deploy 1"),
                mark(70, USER_MARK, "deploy 2"),
                mark(80, "fork", "process 7"),
            ],
        }
    }

    fn within(text: &str) -> Result<u64, String> {
        text.parse::<Time>()?.within(&history())
    }

    #[test]
    fn times_are_of_the_recordings_zone() {
        let minutes = |text| within(text).map(|millis| millis / 1000 / 60);
        assert_eq!(minutes("03:00"), Ok(270));
        assert_eq!(minutes("2026-11-28T03:00"), Ok(270));
        assert_eq!(minutes("02:00Z"), Ok(270));
        assert_eq!(minutes("2026-11-28T02:00:00.000Z"), Ok(270));
        assert_eq!(minutes("23:00"), Ok(30), "yesterday's");
        assert_eq!(minutes("-30m40s"), Ok(300));
        assert_eq!(minutes("+1h30m"), Ok(90));
        assert_eq!((within("+1.5s"), within("-0s"), within("+0s")), (Ok(1500), Ok(history().end()), Ok(0)));
        assert_eq!(within("04:01"), Ok(history().end()), "seconds behind the end are the end");
        assert_eq!((within("mark:deploy"), within("mark:deploy 1"), within("mark:fork")), (Ok(70), Ok(5), Ok(80)));
    }

    #[test]
    fn what_is_outside_of_the_history_is_said_with_its_ends() {
        for text in ["04:30", "22:00", "2026-11-27T22:00", "-6h", "1970-01-01T00:00"] {
            let error = within(text).expect_err(text);
            assert!(
                error.contains("before the begin") && error.contains("2026-11-27T22:30:00+01:00"),
                "{text}: {error}"
            );
        }
        for text in ["2026-11-28T04:30", "+1d"] {
            let error = within(text).expect_err(text);
            assert!(
                error.contains("behind the end") && error.contains("to 2026-11-28T04:00:40+01:00"),
                "{text}: {error}"
            );
        }
        let error = within("mark:release").expect_err("unknown");
        assert!(error.ends_with("its last marks are fork, deploy 2, deploy 1, start"), "{error}");
    }

    #[test]
    fn what_is_no_time_is_refused_with_examples() {
        for text in [
            "",
            "3:00",
            "03",
            "24:00",
            "03:60",
            "03:00:60",
            "-",
            "+10",
            "-10x",
            "1h",
            "mark:",
            "2026-11-31T00:00",
            "2026-13-01T00:00",
            "1969-01-01T00:00",
            "2026-11-28",
            "-99999999999999999999d",
            "03:00:é0",
            "2026-é1-1T00:00",
        ] {
            let error = text.parse::<Time>().expect_err(text);
            assert!(error.contains("mark:NAME are times"), "{text}: {error}");
        }
    }

    #[test]
    fn shown_times_are_those_of_date() {
        assert_eq!(local(1_767_225_599_000, 0), "2025-12-31T23:59:59Z");
        assert_eq!(local(1_767_225_599_040, 3600), "2026-01-01T00:59:59.040+01:00");
        assert_eq!(local(951_782_400_000, -16_200), "2000-02-28T19:30:00-04:30");
        for days in [0, 58, 59, 10_956, 11_016, 20_000, 47_540] {
            let (year, month, day) = civil(days);
            assert_eq!(days_of(year, month, day), days);
        }
        assert!(local(u64::MAX, i32::MAX).ends_with("+03:14"), "{}", local(u64::MAX, i32::MAX));
    }
}
