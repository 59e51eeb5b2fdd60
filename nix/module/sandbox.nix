# What the unit is allowed to do: systemd-analyze security calls it 1.0. Debian's unit is made from this list, too.
#
# Each line was seen to work in an unprivileged LXC; what is not here (ProcSubset=pid, PrivatePIDs, PrivateBPF,
# PrivateUsers=full) was seen to break the gateway or its start there.
{
  writable,
  allowedNetworks,
}:
{
  UMask = "0077";
  AmbientCapabilities = "";
  CapabilityBoundingSet = "";
  NoNewPrivileges = true;
  RestrictSUIDSGID = true;
  DevicePolicy = "closed";
  PrivateDevices = true;
  PrivateIPC = true;
  PrivateMounts = true;
  PrivateTmp = true;
  PrivateUsers = true;
  ProtectHome = true;
  ProtectSystem = "strict";
  ProtectClock = true;
  ProtectControlGroups = true;
  ProtectHostname = true;
  ProtectKernelLogs = true;
  ProtectKernelModules = true;
  ProtectKernelTunables = true;
  ProtectProc = "invisible";
  ProcSubset = "all";
  RemoveIPC = true;
  KeyringMode = "private";
  LockPersonality = true;
  MemoryDenyWriteExecute = true;
  RestrictAddressFamilies = "AF_INET AF_INET6 AF_NETLINK AF_UNIX";
  RestrictNamespaces = true;
  RestrictRealtime = true;
  SystemCallArchitectures = "native";
  SystemCallErrorNumber = "EPERM";
  SystemCallFilter = [
    "@system-service"
    "~@privileged @resources"
  ];
  NoExecPaths = writable;
  IPAddressDeny = "any";
  IPAddressAllow = allowedNetworks;
}
