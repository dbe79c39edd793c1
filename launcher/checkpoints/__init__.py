"""The commands about checkpoints: inspect, plan, verify, reshard, convert."""
