//! Plain tables: columns as wide as their widest cell, two blanks between them.

/// A colour of the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Good,
    Warn,
    Bad,
    Head,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Colour::Good => "32",
            Colour::Warn => "33",
            Colour::Bad => "31",
            Colour::Head => "1",
        }
    }
}

/// `text`, coloured if `on`.
pub fn paint(text: &str, colour: Option<Colour>, on: bool) -> String {
    match colour {
        Some(c) if on => format!("\x1b[{}m{text}\x1b[0m", c.code()),
        _ => text.to_owned(),
    }
}

/// A cell of a table.
#[derive(Clone, Debug)]
pub struct Cell {
    pub text: String,
    pub colour: Option<Colour>,
    /// Numbers stand at the right of their column.
    pub right: bool,
}

impl From<String> for Cell {
    fn from(text: String) -> Cell {
        Cell { text, colour: None, right: false }
    }
}

impl Cell {
    /// A cell that stands out.
    pub fn coloured(text: impl Into<String>, colour: Option<Colour>) -> Cell {
        Cell { text: text.into(), colour, right: false }
    }

    /// A number.
    pub fn number(text: impl Into<String>) -> Cell {
        Cell { text: text.into(), colour: None, right: true }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// The rows as lines, no blanks at their ends.
pub fn layout(rows: &[Vec<Cell>], colours: bool) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(Cell::width).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut gap = 0;
        for (cell, width) in row.iter().zip(&widths) {
            let blanks = width - cell.width();
            let (before, after) = if cell.right { (blanks, 0) } else { (0, blanks) };
            if !cell.text.is_empty() {
                text.push_str(&" ".repeat(gap + before));
                text.push_str(&paint(&cell.text, cell.colour, colours));
                gap = after + 2;
            } else {
                gap += width + 2;
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_blank_ends() {
        let cell = |s: &str| Cell::from(s.to_owned());
        let rows = vec![
            vec![cell("PEER"), cell("LAG"), cell("WHY")],
            vec![cell("beta"), Cell::number("7"), cell("")],
            vec![cell("élan-a"), cell(""), Cell::coloured("no", Some(Colour::Bad))],
        ];
        assert_eq!(layout(&rows, false), "PEER    LAG  WHY\nbeta      7\nélan-a       no\n");
        assert!(layout(&rows, true).contains("\x1b[31mno\x1b[0m"));
        assert_eq!(layout(&[], false), "");
    }
}
