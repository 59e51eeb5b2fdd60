# What the gateway looks for in its own process at start, in the names of src/systemmanager/server/sandbox.py.
[
  "no_new_privileges"
  "no_capabilities"
  "system_calls"
  "non_root"
  "own_users"
  "read_only_system"
  "no_home"
  "own_tmp"
  "own_devices"
  "nothing_to_execute"
  "no_writable_code"
  "address_families"
  "kernel_tunables"
  "control_groups"
  "closed_umask"
]
