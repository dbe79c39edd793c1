"""Jobs on a cluster: written, submitted, looked after and cancelled."""
