//! The terminal: its own screen, keys, and back to what it was.

use std::io::{self, Stdout, Write as _};
use std::time::{Duration, Instant};

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use crossterm::style::Print;
use crossterm::terminal::{
    self, Clear, ClearType, DisableLineWrap, EnableLineWrap, EnterAlternateScreen, LeaveAlternateScreen,
};
use crossterm::{execute, queue};

use super::text;
use super::watch::Watch;

/// A terminal that is ours until this is dropped.
struct Screen {
    to: Stdout,
}

impl Screen {
    fn take() -> io::Result<Screen> {
        terminal::enable_raw_mode()?;
        // From here on dropping it gives the terminal back.
        let mut screen = Screen { to: io::stdout() };
        execute!(screen.to, EnterAlternateScreen, Hide, DisableLineWrap)?;
        Ok(screen)
    }

    fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let (width, height) = terminal::size()?;
        queue!(self.to, MoveTo(0, 0))?;
        for (row, line) in (0..height).zip(lines) {
            let line: String = line.chars().take(width.into()).collect();
            queue!(self.to, MoveTo(0, row), Print(line), Clear(ClearType::UntilNewLine))?;
        }
        if let Ok(below) = u16::try_from(lines.len())
            && below < height
        {
            queue!(self.to, MoveTo(0, below), Clear(ClearType::FromCursorDown))?;
        }
        self.to.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing back.
        drop(execute!(self.to, EnableLineWrap, Show, LeaveAlternateScreen));
        drop(terminal::disable_raw_mode());
    }
}

/// What is shown.
#[derive(Default)]
struct View {
    /// The session shown, if it is not the list.
    open: Option<(u32, u64)>,
    /// The place in the list.
    selected: usize,
}

impl View {
    /// False to leave.
    fn key(&mut self, code: KeyCode, modifiers: KeyModifiers, watch: &Watch) -> bool {
        match code {
            KeyCode::Char('q') => return false,
            KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return false,
            KeyCode::Esc if self.open.is_none() => return false,
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left => self.open = None,
            KeyCode::Enter | KeyCode::Right => self.open = watch.key(self.selected),
            KeyCode::Up => self.selected = self.selected.saturating_sub(1),
            KeyCode::Down => self.selected = (self.selected + 1).min(watch.len().saturating_sub(1)),
            _ => {}
        }
        true
    }

    fn lines(&mut self, watch: &Watch) -> Vec<String> {
        self.selected = self.selected.min(watch.len().saturating_sub(1));
        let mut lines = match self.open.and_then(|key| watch.get(key)) {
            Some(session) => text::session(session),
            None if watch.len() == 0 => vec!["no observed session any more; waiting for one".to_owned()],
            None => text::list(watch, self.selected),
        };
        lines.extend([String::new(), "up, down, Enter: a session   Esc: the list   q: leave".to_owned()]);
        lines
    }
}

/// Shows what is watched, and looks again after each interval, until a key says to leave.
pub(super) fn show(
    interval: Duration,
    mut watch: Watch,
    mut look: impl FnMut(&mut Watch) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut view = View { open: watch.key(0).filter(|_| watch.len() == 1), selected: 0 };
    let mut screen = Screen::take()?;
    loop {
        screen.draw(&view.lines(&watch))?;
        let looked = Instant::now();
        while event::poll(interval.saturating_sub(looked.elapsed()))? {
            if let Event::Key(key) = event::read()?
                && key.kind == KeyEventKind::Press
                && !view.key(key.code, key.modifiers, &watch)
            {
                return Ok(());
            }
            screen.draw(&view.lines(&watch))?;
        }
        look(&mut watch)?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::watch::tests::published;
    use super::*;

    #[test]
    fn keys_choose_a_session_show_it_and_leave() {
        let mut watch = Watch::default();
        watch.update([published(1, 1000, 100), published(2, 1000, 100)].iter());
        let mut view = View::default();
        let press = |view: &mut View, code| view.key(code, KeyModifiers::NONE, &watch);
        for code in [KeyCode::Up, KeyCode::Down, KeyCode::Down, KeyCode::Enter] {
            assert!(press(&mut view, code));
        }
        assert_eq!(view.open, Some((7, 2)));
        assert!(view.lines(&watch)[0].contains("session 2"));
        assert!(press(&mut view, KeyCode::Esc));
        assert!(view.lines(&watch)[2].starts_with('>'));
        assert!(!press(&mut view, KeyCode::Esc) && !press(&mut view, KeyCode::Char('q')));
        assert!(view.key(KeyCode::Char('c'), KeyModifiers::NONE, &watch));
        assert!(!view.key(KeyCode::Char('c'), KeyModifiers::CONTROL, &watch));

        // The session shown ends, and then the other one.
        view.open = Some((7, 2));
        watch.update([published(1, 1000, 100)].iter());
        assert!(view.lines(&watch)[1].starts_with("> "));
        watch.update([].iter());
        assert!(view.lines(&watch)[0].starts_with("no observed session"));
    }
}
