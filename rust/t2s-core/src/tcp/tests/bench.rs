//! The bench: a worker with one flow, the client and the upstream played by the test.

use super::*;

/// A worker with one flow.
pub(super) struct Bench {
    pub(super) now: Instant,
    pub(super) config: TcpConfig,
    pub(super) stream: StreamLimits,
    pub(super) pool: Pool,
    pub(super) cache: PoolCache,
    pub(super) budget: Budget,
    pub(super) memory: BufferBudget,
    pub(super) counts: DropCounts,
    pub(super) stats: TcpStats,
    pub(super) tcb: Option<Tcb>,
    pub(super) options: Options,
}

macro_rules! with {
    ($bench:expr, $tcb:ident, $ctx:ident => $body:expr) => {{
        let mut $tcb = $bench.tcb.take().expect("a flow");
        let $ctx = &mut Ctx {
            now: $bench.now,
            config: &$bench.config,
            stream: &$bench.stream,
            mode: Reassembly::Bounded,
            pool: &mut $bench.cache,
            budget: &mut $bench.budget,
            memory: &mut $bench.memory,
            counts: &mut $bench.counts,
            tcp: &mut $bench.stats,
        };
        let result = $body;
        $bench.tcb = Some($tcb);
        result
    }};
}

impl Bench {
    /// A flow in `SynPending` or, with `SynAck::Immediate`, `SynReceived`.
    pub(super) fn new(config: TcpConfig, options: Options) -> Self {
        Self::with_mss(config, options, MSS + 12, true)
    }

    /// The same on a device whose packets carry `mss` bytes, over IPv4 or IPv6.
    fn with_mss(config: TcpConfig, options: Options, mss: u16, v4: bool) -> Self {
        let pool = Pool::new(PoolConfig::default());
        let cache = pool.cache();
        let stream = StreamLimits { flow_bytes: 64 * 1024, flow_segments: 64, total_bytes: 1 << 20 };
        let mut bench = Self {
            now: Instant::from_millis(5_000),
            config,
            stream,
            pool,
            cache,
            budget: Budget::new(1 << 20),
            memory: BufferBudget::new(64 << 20),
            counts: DropCounts::default(),
            stats: TcpStats::default(),
            tcb: None,
            options,
        };
        let syn = Tcp { seq: IRS, ack: SeqNumber(0), ..bench.header(Flags::SYN, 0, 0, 65_000) };
        let tcb = Tcb::accept(
            &mut Ctx {
                now: bench.now,
                config: &bench.config,
                stream: &bench.stream,
                mode: Reassembly::Bounded,
                pool: &mut bench.cache,
                budget: &mut bench.budget,
                memory: &mut bench.memory,
                counts: &mut bench.counts,
                tcp: &mut bench.stats,
            },
            &syn,
            ISS,
            mss,
            v4,
        );
        bench.tcb = Some(tcb);
        bench
    }

    pub(super) fn established(config: TcpConfig, options: Options) -> Self {
        Self::established_with(config, options, MSS + 12, true)
    }

    pub(super) fn established_with(config: TcpConfig, options: Options, mss: u16, v4: bool) -> Self {
        let mut bench = Self::with_mss(config, options, mss, v4);
        assert_eq!(bench.events(), Events::CONNECT_WANTED);
        with!(bench, tcb, ctx => tcb.connected(ctx));
        let syn_ack = bench.poll(&LIMITS).expect("SYN-ACK");
        assert_eq!(syn_ack.repr.flags, Flags::SYN | Flags::ACK);
        assert_eq!((syn_ack.repr.seq, syn_ack.repr.ack), (ISS, IRS + 1));
        assert!(bench.poll(&LIMITS).is_none());
        bench.receive(Flags::ACK, 0, 0, 65_000, &[]);
        assert_eq!(bench.tcb().state(), State::Established);
        assert_eq!(bench.events(), Events::ESTABLISHED);
        bench
    }

    /// Established, with scaling by 7, SACK and timestamps.
    pub(super) fn modern() -> Self {
        let options = Options {
            mss: Some(MSS + 12),
            window_scale: Some(7),
            sack_permitted: true,
            timestamp: Some((1, 0)),
            sack: SackBlocks::EMPTY,
        };
        let mut bench = Self::new(TcpConfig::default(), options);
        let _ = bench.events();
        with!(bench, tcb, ctx => tcb.connected(ctx));
        assert!(bench.poll(&LIMITS).is_some());
        bench.receive(Flags::ACK, 0, 0, 1_000, &[]);
        let _ = bench.events();
        bench
    }

    pub(super) fn tcb(&self) -> &Tcb {
        self.tcb.as_ref().expect("a flow")
    }

    pub(super) fn room(&mut self) -> usize {
        self.tcb.as_mut().expect("a flow").upstream_room(&self.config, &self.memory)
    }

    pub(super) fn events(&mut self) -> Events {
        self.tcb.as_mut().expect("a flow").take_events()
    }

    /// A header of the client; `seq` and `ack` count from the first byte after the SYNs.
    pub(super) fn header(&self, flags: Flags, seq: u32, ack: u32, window: u16) -> Tcp {
        let mut options = self.options;
        if !flags.syn() {
            options = Options { timestamp: options.timestamp, ..Options::NONE };
        }
        Tcp { src_port: 1, dst_port: 2, seq: IRS + 1 + seq, ack: ISS + 1 + ack, flags, window, header_len: 20, options }
    }

    pub(super) fn receive(&mut self, flags: Flags, seq: u32, ack: u32, window: u16, payload: &[u8]) {
        let header = self.header(flags, seq, ack, window);
        self.receive_header(&header, payload);
    }

    pub(super) fn receive_header(&mut self, header: &Tcp, payload: &[u8]) {
        let buf = self.cache.alloc_copy(payload, 64).expect("room");
        with!(self, tcb, ctx => tcb.handle_segment(ctx, header, buf));
    }

    pub(super) fn sack(&mut self, ack: u32, blocks: &[(u32, u32)]) {
        let mut header = self.header(Flags::ACK, 0, ack, 1_000);
        header.options.sack = blocks.iter().map(|&(left, right)| (ISS + 1 + left, ISS + 1 + right)).collect();
        self.receive_header(&header, &[]);
    }

    pub(super) fn poll(&mut self, limits: &SegmentLimits) -> Option<OutSegment> {
        with!(self, tcb, ctx => tcb.poll_segment(ctx, limits))
    }

    pub(super) fn drain(&mut self, limits: &SegmentLimits) -> Vec<OutSegment> {
        std::iter::from_fn(|| self.poll(limits)).take(1_000).collect()
    }

    pub(super) fn push(&mut self, len: usize) {
        let buf = self.cache.alloc_copy(&vec![7; len], 0).expect("room");
        with!(self, tcb, ctx => tcb.push(ctx, buf));
    }

    pub(super) fn wait(&mut self, nanos: u64) {
        self.now = self.now.plus(nanos);
        with!(self, tcb, ctx => tcb.handle_timeout(ctx));
    }

    /// Waits for the deadline, which must be of this kind.
    pub(super) fn expire(&mut self, kind: TimerKind) {
        let (at, found) = self.tcb().deadline().expect("a timer");
        assert_eq!(found, kind);
        self.wait(at.since(self.now));
    }

    /// Releases the flow; nothing may be left.
    pub(super) fn finish(mut self) {
        let tcb = self.tcb.take().expect("a flow");
        tcb.release(&mut self.cache, &mut self.budget, &mut self.memory);
        self.cache.flush();
        assert_eq!(self.pool.stats().live_buffers, 0, "buffers left");
        assert_eq!(self.memory.used(), 0, "bytes left in the budget");
        assert_eq!(self.memory.grown, 0, "a window left in the budget");
        assert_eq!(self.budget.used(), 0, "out-of-order bytes left in the budget");
    }
}
