//! One producer thread: takes files, cuts them, feeds the ring, joins the results, confirms, reports.
//!
//! A producer keeps two batches: while the device steps one, it reads and cuts the files of the next. A file
//! up to [`KEEP_BYTES`] stays in memory until it is confirmed. A longer one passes through a batch at a time,
//! and is read a second time only if a rule may match in it. Matches are found as they are sent.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use vyre_runtime::session::Payload;

use super::chain::{self, Chain, Outcome, PIECE_BYTES, Rerun, WARM_UP_BYTES};
use super::confirm::{Match, confirm};
use super::device::{BATCHES, DEADLINE, Device, Item, Submitted};
use super::error::ScanError;
use super::plan::Plan;
use super::reports::{FileReport, PART_MATCHES, Turns};
use super::rules::Rules;
use super::source::{FileError, Source};
use super::stats::Counts;

/// Files up to this length are kept in memory while they are scanned, and read once.
pub const KEEP_BYTES: u64 = 16 << 20;

/// Bytes before a segment that travel with it: the warm-up of its first piece, and a few more for what that
/// warm-up looks back at, in a multiple of a word.
pub(super) const LEAD_BYTES: usize = WARM_UP_BYTES + 4;

/// How long to wait before asking a full ring again.
const NAP: Duration = Duration::from_micros(50);

/// Segments begin at multiples of this in a payload, so that words can be loaded.
pub(super) const SEGMENT_ALIGN: usize = 4;

/// What the producers of one scan share.
pub(super) struct Shared<'s> {
    pub(super) rules: &'s Rules,
    pub(super) plan: &'s Plan,
    pub(super) device: &'s Device,
    pub(super) files: &'s [PathBuf],
    /// The next file nobody has taken.
    pub(super) next: AtomicUsize,
    /// Raised when no more files are to be taken.
    pub(super) stop: AtomicBool,
    pub(super) turns: Turns,
}

impl Shared<'_> {
    /// Lets the producers come to their end, those too that wait for one another.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.turns.stop();
    }
}

/// A file of which some of the last word is not yet spoken.
struct Scan {
    index: usize,
    source: Source,
    /// The whole file if it is kept, else the end of what was read.
    bytes: Vec<u8>,
    kept: bool,
    /// Bytes cut into segments.
    cut: u64,
    /// Segments not yet joined.
    in_flight: usize,
    chains: Vec<Chain>,
    /// Reported early, because of an error.
    failed: bool,
}

impl Scan {
    fn is_cut(&self) -> bool {
        self.failed || self.cut == self.source.len()
    }
}

/// A part of a file that is in a payload. A batch has at most one of each file.
struct Segment {
    /// The file's number among those of its producer.
    file: u64,
    /// Where it begins in the payload.
    base: usize,
    lead: usize,
    len: usize,
    /// Its first item; each group has one for each piece, group by group.
    first_item: usize,
}

impl Segment {
    fn pieces(&self) -> usize {
        chain::count(self.len)
    }
}

/// Segments and their items.
#[derive(Default)]
struct Batch {
    segments: Vec<Segment>,
    items: Vec<Item>,
    /// Bytes of payload used.
    filled: usize,
}

/// A batch that was submitted.
struct Pending {
    batch: Batch,
    payload: Payload,
    state: State,
}

enum State {
    /// On the device, its results not taken.
    Submitted(Submitted),
    /// Its results are here, and its slots free.
    Collected(Vec<Outcome>),
}

impl State {
    fn outcomes(self, device: &Device) -> Result<Vec<Outcome>, ScanError> {
        match self {
            State::Submitted(submitted) => device.wait(submitted),
            State::Collected(outcomes) => Ok(outcomes),
        }
    }
}

impl Pending {
    /// Waits for the results and takes them, so that the slots are free.
    fn collect(&mut self, device: &Device) -> Result<(), ScanError> {
        let state = std::mem::replace(&mut self.state, State::Collected(Vec::new()));
        self.state = State::Collected(state.outcomes(device)?);
        Ok(())
    }
}

/// One producer.
pub(super) struct Producer<'s> {
    shared: &'s Shared<'s>,
    /// Clones of its own: threads that share a regex wait for each other's scratch memory.
    rules: Arc<Rules>,
    reports: SyncSender<(usize, FileReport)>,
    /// Files being scanned, oldest first.
    scans: VecDeque<Scan>,
    /// The number of the oldest.
    first_file: u64,
    /// Batches submitted and not joined, oldest first.
    pending: VecDeque<Pending>,
    counts: Counts,
}

impl<'s> Producer<'s> {
    pub(super) fn new(shared: &'s Shared<'s>, reports: SyncSender<(usize, FileReport)>) -> Producer<'s> {
        let rules = Arc::new(shared.rules.clone());
        Producer {
            shared,
            rules,
            reports,
            scans: VecDeque::new(),
            first_file: 0,
            pending: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// Works until no file is left; returns what it counted.
    pub(super) fn run(mut self) -> Result<Counts, ScanError> {
        let done = self.work();
        if done.is_err() {
            // The turns of its files will never come.
            self.shared.stop();
        }
        done.map(|()| self.counts)
    }

    fn work(&mut self) -> Result<(), ScanError> {
        let mut spare = Vec::new();
        for _ in 0..BATCHES {
            spare.push(self.shared.device.payload()?);
        }
        loop {
            if let Some(mut payload) = spare.pop() {
                let batch = self.fill(&mut payload)?;
                if !batch.items.is_empty() {
                    let submitted = self.submit(&payload, &batch.items)?;
                    self.counts.submitted(&batch.items);
                    let state = State::Submitted(submitted);
                    self.pending.push_back(Pending { batch, payload, state });
                    continue;
                }
                spare.push(payload);
            }
            match self.pending.pop_front() {
                Some(oldest) => spare.push(self.join(oldest)?),
                None => return Ok(()),
            }
        }
    }

    /// Submits items. While the ring is full this producer holds no slots: where each waits for the others
    /// with slots in hand, all would wait for ever.
    fn submit(&mut self, payload: &Payload, items: &[Item]) -> Result<Submitted, ScanError> {
        let began = Instant::now();
        loop {
            if let Some(submitted) = self.shared.device.submit(payload, items)? {
                return Ok(submitted);
            }
            self.release()?;
            if began.elapsed() > DEADLINE {
                return Err(ScanError::NoRoom { after: DEADLINE });
            }
            thread::sleep(NAP);
        }
    }

    /// Takes the results of everything submitted, so that this producer holds no slots.
    fn release(&mut self) -> Result<(), ScanError> {
        let device = self.shared.device;
        self.pending.iter_mut().try_for_each(|pending| pending.collect(device))
    }

    /// Cuts files into a payload until it is full or no file is left.
    fn fill(&mut self, payload: &mut Payload) -> Result<Batch, ScanError> {
        let groups = self.shared.plan.groups().len();
        let mut batch = Batch::default();
        loop {
            if self.scans.back().is_none_or(Scan::is_cut) {
                match self.take_file() {
                    Some(index) => self.open(index)?,
                    None => return Ok(batch),
                }
                continue;
            }
            let items = self.shared.device.batch_items() - batch.items.len();
            let room = (payload.len() as usize).saturating_sub(batch.filled + LEAD_BYTES);
            // Whole pieces, so that the segment after this one begins where one begins.
            let bytes = (items / groups.max(1)).min(room / PIECE_BYTES) * PIECE_BYTES;
            if bytes == 0 || !self.cut_segment(&mut batch, bytes, payload)? {
                return Ok(batch);
            }
        }
    }

    /// The next file nobody has taken.
    fn take_file(&self) -> Option<usize> {
        if self.shared.stop.load(Ordering::Relaxed) {
            return None;
        }
        let index = self.shared.next.fetch_add(1, Ordering::Relaxed);
        (index < self.shared.files.len()).then_some(index)
    }

    /// Opens a file, reads it if it is to be kept, and enters it in the list; or reports why not.
    fn open(&mut self, index: usize) -> Result<(), ScanError> {
        let Some(path) = self.shared.files.get(index) else { return Ok(()) };
        let mut bytes = Vec::new();
        let opened = Source::open(path).and_then(|mut source| {
            let kept = source.len() <= KEEP_BYTES || self.shared.plan.groups().is_empty();
            if kept {
                source.read_whole(&mut bytes)?;
            }
            Ok((source, kept))
        });
        let (source, kept) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.refuse(index, 0, error),
        };
        let groups = self.shared.plan.groups();
        let chains = groups.iter().map(|group| Chain::new(&group.automaton, group.rules.len())).collect();
        let mut scan = Scan { index, source, bytes, kept, cut: 0, in_flight: 0, chains, failed: false };
        self.counts.files += 1;
        self.counts.bytes += scan.source.len();
        if groups.is_empty() {
            scan.cut = scan.source.len();
        }
        self.scans.push_back(scan);
        // It may be over: empty, or with rules of the host only.
        self.retire()
    }

    /// Moves up to `bytes` bytes of the newest file into the batch. `false` if they did not fit the payload.
    fn cut_segment(
        &mut self,
        batch: &mut Batch,
        bytes: usize,
        payload: &mut Payload,
    ) -> Result<bool, ScanError> {
        let file = self.first_file + self.scans.len().saturating_sub(1) as u64;
        let Some(scan) = self.scans.back_mut() else { return Ok(false) };
        let left = scan.source.len() - scan.cut;
        let len = usize::try_from(left).map_or(bytes, |left| left.min(bytes));
        let lead = usize::try_from(scan.cut).map_or(LEAD_BYTES, |cut| cut.min(LEAD_BYTES));
        let from = if scan.kept {
            scan.cut as usize - lead
        } else {
            let stale = scan.bytes.len().saturating_sub(lead);
            scan.bytes.drain(..stale);
            if let Err(error) = scan.source.read(len, &mut scan.bytes) {
                scan.failed = true;
                let (index, len) = (scan.index, scan.source.len());
                self.refuse(index, len, error)?;
                self.retire()?;
                return Ok(true);
            }
            0
        };
        let content = scan.bytes.get(from..from + lead + len).unwrap_or_default();
        let segment = Segment { file, base: batch.filled, lead, len, first_item: batch.items.len() };
        let written = payload.write(segment.base as u32, content);
        written.map_err(ScanError::megakernel("write a payload"))?;
        for (group, planned) in (0..).zip(self.shared.plan.groups()) {
            for index in 0..segment.pieces() {
                let piece = chain::piece(lead, len, index);
                let begin = piece.start - piece.warm_up;
                let before = begin.checked_sub(1).and_then(|at| content.get(at)).copied();
                batch.items.push(Item {
                    offset: (segment.base + begin) as u32,
                    warm_up: piece.warm_up as u32,
                    len: piece.len as u32,
                    group,
                    entry: planned.automaton.start(before),
                });
            }
        }
        batch.filled += (lead + len).next_multiple_of(SEGMENT_ALIGN);
        batch.segments.push(segment);
        scan.cut += len as u64;
        scan.in_flight += 1;
        Ok(true)
    }

    /// Waits for a batch, runs again what began in a wrong state, and finishes the files that end in it.
    fn join(&mut self, pending: Pending) -> Result<Payload, ScanError> {
        let Pending { batch, payload, state } = pending;
        let outcomes = state.outcomes(self.shared.device)?;

        // One entry for each segment and group: how far its chain has come.
        let groups = self.shared.plan.groups().len();
        let mut places = vec![0; batch.segments.len() * groups];
        loop {
            let mut reruns: Vec<(usize, usize, Rerun)> = Vec::new();
            for (at, segment) in batch.segments.iter().enumerate() {
                for group in 0..groups {
                    let first = segment.first_item + group * segment.pieces();
                    let known = outcomes.get(first..first + segment.pieces()).unwrap_or_default();
                    let chain = chain_of(&mut self.scans, self.first_file, segment.file, group);
                    let (Some(chain), Some(place)) = (chain, places.get_mut(at * groups + group)) else {
                        continue;
                    };
                    if let Some(rerun) = chain.advance(known, place) {
                        reruns.push((at, group, rerun));
                    }
                }
            }
            if reruns.is_empty() {
                break;
            }
            self.rerun(&batch, &payload, &reruns, &mut places)?;
        }
        for segment in &batch.segments {
            if let Some(scan) = scan_of(&mut self.scans, self.first_file, segment.file) {
                scan.in_flight -= 1;
            }
        }
        self.retire()?;
        Ok(payload)
    }

    fn rerun(
        &mut self,
        batch: &Batch,
        payload: &Payload,
        reruns: &[(usize, usize, Rerun)],
        places: &mut [usize],
    ) -> Result<(), ScanError> {
        let groups = self.shared.plan.groups().len();
        let items: Vec<Item> = reruns
            .iter()
            .filter_map(|&(at, group, rerun)| {
                let segment = batch.segments.get(at)?;
                let first = chain::piece(segment.lead, segment.len, rerun.first);
                let last = chain::piece(segment.lead, segment.len, rerun.first + rerun.pieces - 1);
                Some(Item {
                    offset: (segment.base + first.start) as u32,
                    warm_up: 0,
                    len: (last.start + last.len - first.start) as u32,
                    group: group as u32,
                    entry: rerun.entry,
                })
            })
            .collect();
        let submitted = self.submit(payload, &items)?;
        self.counts.resubmitted(&items);
        let outcomes = self.shared.device.wait(submitted)?;
        for (&(at, group, rerun), outcome) in reruns.iter().zip(&outcomes) {
            let Some(segment) = batch.segments.get(at) else { continue };
            let chain = chain_of(&mut self.scans, self.first_file, segment.file, group);
            if let (Some(chain), Some(place)) = (chain, places.get_mut(at * groups + group)) {
                chain.rerun(rerun, outcome, place);
            }
        }
        Ok(())
    }

    /// Takes the oldest files out of the list as long as they are over.
    fn retire(&mut self) -> Result<(), ScanError> {
        while self.scans.front().is_some_and(|scan| scan.is_cut() && scan.in_flight == 0) {
            let Some(scan) = self.scans.pop_front() else { break };
            self.first_file += 1;
            if !scan.failed {
                self.finish(scan)?;
            }
        }
        Ok(())
    }

    /// Confirms and reports a file whose every byte was stepped.
    fn finish(&mut self, mut scan: Scan) -> Result<(), ScanError> {
        let plan = self.shared.plan;
        let mut suspects = plan.host().to_vec();
        for (group, chain) in plan.groups().iter().zip(&scan.chains) {
            let accepted = chain.finish(&group.automaton);
            let seen = group.rules.iter().enumerate().filter(|&(bit, _)| accepted >> bit & 1 != 0);
            suspects.extend(seen.map(|(_, &rule)| rule));
        }
        self.counts.stepped(scan.source.len(), plan);
        if let Err(error) = read_again(&mut scan, !suspects.is_empty()) {
            return self.refuse(scan.index, scan.source.len(), error);
        }
        let rules = Arc::clone(&self.rules);
        let mut matches = confirm(&rules, suspects.iter().copied(), &scan.bytes);
        self.counts.confirmed(plan, &suspects, matches.rules());

        let mut part: Vec<_> = matches.by_ref().take(PART_MATCHES).collect();
        loop {
            let following: Vec<_> = matches.by_ref().take(PART_MATCHES).collect();
            let complete = following.is_empty();
            if !complete || !self.shared.turns.admit(scan.index, part.len()) {
                // Files are finished in the order in which they were taken, so no older one of this producer
                // waits for this one.
                self.release()?;
                self.shared.turns.await_turn(scan.index, part.len());
            }
            self.counts.matches(part.len());
            self.send(scan.index, scan.source.len(), Ok(part), complete)?;
            if complete || self.shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            part = following;
        }
    }

    /// Reports a file that cannot be scanned.
    fn refuse(&mut self, index: usize, bytes: u64, error: FileError) -> Result<(), ScanError> {
        self.send(index, bytes, Err(error), true)
    }

    /// Sends a report. Who has to wait for the reader holds no slots in the ring meanwhile.
    fn send(
        &mut self,
        index: usize,
        bytes: u64,
        outcome: Result<Vec<Match>, FileError>,
        complete: bool,
    ) -> Result<(), ScanError> {
        let path = self.shared.files.get(index).cloned().unwrap_or_default();
        let sent = match self.reports.try_send((index, FileReport { path, bytes, outcome, complete })) {
            Err(TrySendError::Full(report)) => {
                self.release()?;
                self.reports.send(report).is_ok()
            }
            sent => sent.is_ok(),
        };
        if !sent {
            // Nobody listens any more.
            self.shared.stop();
        }
        Ok(())
    }
}

impl Drop for Producer<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.stop();
        }
    }
}

/// Reads a file that was not kept as a whole, if rules are to be confirmed in it.
fn read_again(scan: &mut Scan, wanted: bool) -> Result<(), FileError> {
    if scan.kept {
        return Ok(());
    }
    if wanted {
        scan.bytes.clear();
        scan.source.rewind()?;
        while scan.source.read(usize::MAX, &mut scan.bytes)? > 0 {}
    }
    scan.source.check()
}

fn scan_of(scans: &mut VecDeque<Scan>, first_file: u64, file: u64) -> Option<&mut Scan> {
    scans.get_mut(usize::try_from(file.checked_sub(first_file)?).ok()?)
}

fn chain_of(scans: &mut VecDeque<Scan>, first_file: u64, file: u64, group: usize) -> Option<&mut Chain> {
    scan_of(scans, first_file, file)?.chains.get_mut(group)
}
