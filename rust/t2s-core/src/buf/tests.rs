use super::*;

#[test]
fn a_buffer_goes_round() {
    let pool = Pool::new(PoolConfig::default());
    let mut cache = pool.cache();
    let mut buf = cache.alloc(1_500, 128).expect("room");
    assert_eq!((buf.len(), buf.headroom(), buf.capacity()), (0, 128, 2_048));
    assert_eq!(buf.append(b"payload"), 7);
    buf.prepend(3).expect("headroom").copy_from_slice(b"ip ");
    assert_eq!(buf.as_slice(), b"ip payload");
    assert_eq!(pool.stats().bytes_live, 2_048);
    cache.free(buf);
    assert_eq!(pool.stats().bytes_live, 0);
}
