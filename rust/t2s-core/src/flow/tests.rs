use super::*;

fn key(n: u16) -> FlowKey {
    FlowKey::new([10, 0, 0, 1].into(), n, [192, 0, 2, 1].into(), 443, 6)
}

#[test]
fn a_flow_comes_and_goes() {
    let map = FlowMap::new(FlowMapConfig { shards: 2, capacity: 16, ..FlowMapConfig::default() });
    let hash = map.hash(&key(1));
    let mut shard = map.lock(map.shard_of(hash));
    assert_eq!(shard.insert(hash, key(1), 5_u32, Instant::ZERO), Ok(None));
    assert_eq!(shard.insert(hash, key(1), 6, Instant::ZERO), Ok(Some(5)));
    assert_eq!(shard.get(hash, &key(1)), Some(&6));
    assert_eq!(shard.get(hash, &key(2)), None);
    assert_eq!(shard.remove(hash, &key(1)), Some(6));
    drop(shard);
    assert!(map.is_empty());
    assert_eq!(map.stats().total.lookups, 5);
}
