//! A figure over time in a line of blocks.

pub use crate::query::overview::Span;

/// Heights of a column. Only nothing has no height.
const BARS: [char; 9] =
    [' ', '\u{2581}', '\u{2582}', '\u{2583}', '\u{2584}', '\u{2585}', '\u{2586}', '\u{2587}', '\u{2588}'];

/// Draws spans in this many columns of equal time. A column shows the greatest figure of all spans
/// that reach into the time of the column, and nothing where there is none. The greatest figure of
/// all has the full height.
pub fn sparkline(spans: &[Span], columns: usize) -> String {
    let begin = spans.iter().map(|span| span.begin).min().unwrap_or(0);
    let end = spans.iter().map(|span| span.end).max().unwrap_or(0);
    let length = u128::from(end.saturating_sub(begin)).max(1);
    let mut greatest = vec![0_u64; columns];
    let count = columns as u128;
    for span in spans {
        // A span of a column's own time does not reach into the next column.
        let first = u128::from(span.begin - begin) * count / length;
        let behind = (u128::from(span.end.saturating_sub(begin)) * count).div_ceil(length).max(first + 1);
        let within = |column: u128| usize::try_from(column.min(count)).unwrap_or(columns);
        let first = within(first).min(columns.saturating_sub(1));
        for column in greatest.get_mut(first..within(behind)).into_iter().flatten() {
            *column = span.value.max(*column);
        }
    }
    let most = u128::from(greatest.iter().copied().max().unwrap_or(0)).max(1);
    let height = |value: u64| (u128::from(value) * (BARS.len() as u128 - 1)).div_ceil(most);
    greatest.iter().map(|&value| BARS[usize::try_from(height(value)).unwrap_or(0)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(values: &[u64]) -> Vec<Span> {
        (0..).zip(values).map(|(i, &value)| Span { begin: 10 * i, end: 10 * (i + 1), value }).collect()
    }

    #[test]
    fn a_column_shows_the_greatest_of_its_time() {
        assert_eq!(sparkline(&spans(&[0, 1, 50, 100]), 4), " \u{2581}\u{2584}\u{2588}");
        assert_eq!(sparkline(&spans(&[0, 1, 50, 100]), 2), "\u{2581}\u{2588}");
        assert_eq!(sparkline(&spans(&[100, 50]), 4), "\u{2588}\u{2588}\u{2584}\u{2584}");
        assert_eq!(sparkline(&spans(&[7, 7, 7]), 3), "\u{2588}\u{2588}\u{2588}");
    }

    #[test]
    fn there_are_as_many_columns_as_asked_for_whatever_the_spans() {
        let extreme = Span { begin: 0, end: u64::MAX, value: u64::MAX };
        let wrong = Span { begin: 9, end: 3, value: 5 };
        for spans in [&[][..], &[extreme], &[wrong], &[extreme, wrong], &spans(&[0, 0])] {
            for columns in [0, 1, 7, 200] {
                assert_eq!(sparkline(spans, columns).chars().count(), columns, "{spans:?}");
            }
        }
        assert_eq!(sparkline(&spans(&[0, 0]), 3), "   ");
    }
}
