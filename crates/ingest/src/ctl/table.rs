//! Aligned columns for people.

/// Rows under headings; columns of numbers stand to the right.
#[derive(Debug, Default)]
pub struct Table {
    headings: Vec<String>,
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// One column per heading; a heading that starts with `>` makes a column of numbers.
    #[must_use]
    pub fn new(headings: &[&str]) -> Self {
        Self {
            headings: headings.iter().map(|h| h.trim_start_matches('>').to_owned()).collect(),
            right: headings.iter().map(|h| h.starts_with('>')).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; cells that are missing are empty.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// True before the first row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as lines, headings first, two spaces between columns, none at the ends.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let heading = self.headings.get(column).into_iter();
            cells.chain(heading).map(|text| text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let line = |cells: &[String]| {
            let mut text = String::new();
            for (i, (width, right)) in widths.iter().zip(&self.right).enumerate() {
                if i > 0 {
                    text.push_str("  ");
                }
                let cell = cells.get(i).map_or("", String::as_str);
                let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (before, after) = if *right { (pad.as_str(), "") } else { ("", pad.as_str()) };
                text.push_str(before);
                text.push_str(cell);
                text.push_str(after);
            }
            text.truncate(text.trim_end().len());
            text
        };
        std::iter::once(line(&self.headings)).chain(self.rows.iter().map(|r| line(r))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_lines_end_without_spaces() {
        let mut table = Table::new(&["TENANT", ">EVENTS", "NOTE"]);
        table.row(vec!["acme".into(), "1,234".into(), "ok".into()]);
        table.row(vec!["ünï".into(), "7".into()]);
        assert_eq!(table.lines(), ["TENANT  EVENTS  NOTE", "acme     1,234  ok", "ünï          7"]);
    }
}
