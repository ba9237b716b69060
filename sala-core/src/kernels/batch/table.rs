//! The table that a launch finds its work in: jobs, the chunk of a job that each block takes, and where a job's partial
//! sums begin. Plain numbers, without a card.

use candle_core::{Result, bail};

/// Elements of a block's chunk; `device/block.cuh` has the same number.
pub(super) const CHUNK: usize = 16 * 1024;

/// Addresses that are multiples of this are loaded and stored several elements at a time.
const ALIGNMENT: u64 = 16;

/// Blocks of a launch, at most.
const MAX_BLOCKS: usize = i32::MAX as usize;

/// Bits of a job's flags; `device/rules.cuh` has the same.
pub(super) mod flag {
    pub(in super::super) const ALIGNED: u64 = 1;
    pub(in super::super) const COUPLED: u64 = 2;
    pub(in super::super) const FIRST: u64 = 4;
    pub(in super::super) const NESTEROV: u64 = 8;
    pub(in super::super) const RETURN: u64 = 16;
    pub(in super::super) const BF16_GRADIENT: u64 = 32;
    pub(in super::super) const F16_GRADIENT: u64 = 64;
}

/// One tensor's share of a launch. What stands where depends on the rule and is written in `device/rules.cuh`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Job {
    /// Addresses, 0 for what is not there.
    pub(super) at: [u64; 6],
    pub(super) len: usize,
    /// Constants.
    pub(super) by: [f64; 11],
    pub(super) flags: u64,
}

/// Words of a job: its fields one after the other.
const JOB: usize = 19;

impl Job {
    fn words(&self) -> [u64; JOB] {
        let aligned = self.at.iter().all(|at| at.is_multiple_of(ALIGNMENT));
        let mut words = [0; JOB];
        words[..6].copy_from_slice(&self.at);
        words[6] = self.len as u64;
        for (word, x) in words[7..18].iter_mut().zip(self.by) {
            *word = x.to_bits();
        }
        words[18] = self.flags | if aligned { flag::ALIGNED } else { 0 };
        words
    }

    /// Blocks that take a chunk each.
    fn blocks(&self) -> usize {
        self.len.div_ceil(CHUNK)
    }
}

/// What is uploaded for a launch, in words of 8 bytes.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) words: Vec<i64>,
    /// Blocks of the launch.
    pub(super) blocks: u32,
    jobs: usize,
}

impl Table {
    /// # Errors
    /// For more blocks than a launch can have.
    pub(super) fn new(jobs: &[Job]) -> Result<Self> {
        let blocks: usize = jobs.iter().map(Job::blocks).sum();
        let (true, Ok(count)) = (blocks <= MAX_BLOCKS, u32::try_from(blocks)) else {
            bail!("{blocks} blocks of {CHUNK} elements are more than one launch can have");
        };
        let mut words = Vec::with_capacity(jobs.len() * (JOB + 1) + blocks + 1);
        words.extend(jobs.iter().flat_map(Job::words));
        for (job, number) in jobs.iter().zip(0u64..) {
            words.extend((0..job.blocks() as u64).map(|chunk| number | chunk << 32));
        }
        let mut first = 0;
        words.push(first);
        for job in jobs {
            first += job.blocks() as u64;
            words.push(first);
        }
        Ok(Self {
            words: words.into_iter().map(u64::cast_signed).collect(),
            blocks: count,
            jobs: jobs.len(),
        })
    }

    /// Addresses of the jobs, the blocks and the first partial sums of a table that was uploaded to `base`.
    pub(super) fn addresses(&self, base: u64) -> [u64; 3] {
        let blocks = base + 8 * (self.jobs * JOB) as u64;
        [base, blocks, blocks + 8 * u64::from(self.blocks)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(len: usize) -> Job {
        Job {
            len,
            ..Default::default()
        }
    }

    // Catches a chunk that is left out, done twice or counted to another job.
    #[test]
    fn blocks_cover_every_element_of_every_job_once() {
        let lens = [
            0,
            1,
            CHUNK - 1,
            CHUNK,
            CHUNK + 1,
            0,
            3 * CHUNK,
            5 * CHUNK + 7,
        ];
        let table = Table::new(&lens.map(job)).unwrap();
        let index = |x: u64| usize::try_from(x).unwrap();
        let [_, blocks, firsts] = table.addresses(0).map(|at| index(at / 8));
        let word = |at: usize| table.words[at].cast_unsigned();
        let mut covered = [0; 8];
        for block in 0..index(table.blocks.into()) {
            let word_of_block = word(blocks + block);
            let (job, chunk) = (word_of_block & 0xffff_ffff, word_of_block >> 32);
            let (job, chunk) = (index(job), index(chunk));
            let partial_sums = index(word(firsts + job))..index(word(firsts + job + 1));
            assert_eq!(block, partial_sums.start + chunk);
            assert!(partial_sums.contains(&block));
            covered[job] += CHUNK.min(lens[job] - chunk * CHUNK);
        }
        assert_eq!(covered, lens);
        assert_eq!(table.words.len(), firsts + lens.len() + 1);
    }

    #[test]
    fn fields_stand_where_the_kernels_read_them() {
        let job = Job {
            at: [16, 32, 0, 64, 0, 96],
            len: 7,
            by: std::array::from_fn(|i| i as f64),
            flags: flag::COUPLED | flag::RETURN,
        };
        let words = job.words();
        assert_eq!(words[..7], [16, 32, 0, 64, 0, 96, 7]);
        assert_eq!(f64::from_bits(words[17]).to_bits(), 10f64.to_bits());
        assert_eq!(words[18], flag::ALIGNED | flag::COUPLED | flag::RETURN);
        let shifted = Job {
            at: [16, 36, 0, 0, 0, 0],
            ..job
        };
        assert_eq!(shifted.words()[18], flag::COUPLED | flag::RETURN);
    }

    #[test]
    fn more_blocks_than_a_launch_can_have_are_an_error() {
        let message = Table::new(&[job(CHUNK * (MAX_BLOCKS + 1))])
            .unwrap_err()
            .to_string();
        assert!(message.contains("more than one launch"), "{message}");
    }
}
