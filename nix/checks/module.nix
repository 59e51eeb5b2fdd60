# What the module renders and refuses, as values: `lib.runTests` compares.
{
  self,
  nixpkgs,
  pkgs,
}:
let
  inherit (nixpkgs) lib;
  canary = "canary-4f1f0e7c";

  machine =
    extra:
    (lib.nixosSystem {
      system = pkgs.stdenv.hostPlatform.system;
      modules = [
        self.nixosModules.default
        {
          boot.isContainer = true;
          system.stateVersion = "26.05";
          services.systemmanager.enable = true;
        }
      ]
      ++ lib.toList extra;
    }).config;
  with' = settings: machine { services.systemmanager = settings; };
  plain = with' { };
  full = machine {
    services.systemmanager = {
      targets.web-01 = {
        executor = "ssh";
        connection = {
          host = "192.168.1.100";
          username = "admin";
          key_path = "\${SSH_KEY}";
        };
        capabilities = [ "system:read" ];
        constraints.units = [ ];
      };
      policy.grants = [
        {
          subjects = [ "ann@example.com" ];
          scopes = [ "readonly" ];
        }
      ];
      policy.taint_minutes = 5;
      stacks.hosts = [ "git.example.com" ];
      secrets.SSH_KEY = { };
      secrets.SYSTEMMANAGER_SHARED_SECRET = {
        file = "/run/secrets/${canary}";
        encrypted = true;
      };
      allowedNetworks = [
        "192.168.1.0/24"
        "fd00::/8"
      ];
      tailscale.enable = true;
      openFirewall = true;
      settings.MCP_HOST = "0.0.0.0";
      settings.SYSTEMMANAGER_BASE_URL = "http://gateway.tail12345.ts.net:8080";
    };
  };

  unit = config: config.systemd.services.systemmanager-mcp;
  messages = config: map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
  # One assertion of ours fires, and its sentence holds this.
  fires = said: settings: {
    expr = lib.any (lib.hasInfix said) (messages (with' settings));
    expected = true;
  };
  # Refused by a type already.
  refused = settings: {
    expr =
      let
        given = (with' settings).services.systemmanager;
      in
      (builtins.tryEval (
        builtins.deepSeq [
          given.rendered.targets
          given.secrets
          given.tailscale.authKeyFile
        ] true
      )).success;
    expected = false;
  };
  ssh = host: {
    executor = "ssh";
    connection = {
      inherit host;
      username = "admin";
    };
    capabilities = [ "system:read" ];
  };
  fleet =
    gateway: more:
    machine [
      (import ../examples/fleet.nix gateway)
      {
        services.systemmanager.tailscale.enable = true;
        services.systemmanager.fleet.targets = more;
      }
    ];
  api = connection: {
    targets.api = {
      executor = "http";
      connection = {
        base_url = "https://127.0.0.1";
      }
      // connection;
      capabilities = [ ];
    };
  };
  secretSettings = [
    "SYSTEMMANAGER_SHARED_SECRET"
    "SYSTEMMANAGER_SHARED_SECRET_PREVIOUS"
    "SYSTEMMANAGER_OIDC_CLIENT_SECRET"
    "SYSTEMMANAGER_APPROVAL_WEBHOOK_SECRET"
    "SYSTEMMANAGER_AI_KEY"
    "TSIDP_CLIENT_SECRET"
  ];
  ids = config: lib.attrNames config.services.systemmanager.rendered.targets.targets;
in
{
  testItIsQuietByDefault = {
    expr = messages plain ++ messages full;
    expected = [ ];
  };
  testTargetsAreRenderedInTheRegistrysNames = {
    expr = full.services.systemmanager.rendered.targets;
    expected = {
      version = "1.0";
      targets.web-01 = {
        id = "web-01";
        type = "remote";
        executor = "ssh";
        connection = {
          host = "192.168.1.100";
          username = "admin";
          key_path = "\${SSH_KEY}";
        };
        capabilities = [ "system:read" ];
        constraints.units = [ ];
      };
    };
  };
  testPolicyIsRendered = {
    expr = full.services.systemmanager.rendered.policy;
    expected = {
      version = "1.0";
      grants = [
        {
          subjects = [ "ann@example.com" ];
          scopes = [ "readonly" ];
        }
      ];
      taint_minutes = 5;
      stacks.hosts = [ "git.example.com" ];
    };
  };
  testStacksBringTheirPrograms = {
    expr = map lib.getName (lib.subtractLists (unit plain).path (unit full).path);
    expected = [
      "git"
      "openssh"
      "docker-compose"
    ];
  };
  testPolicyStacks = fires "say it in services.systemmanager.stacks" { policy.stacks.hosts = [ "*" ]; };
  testGitSecretsAreNamedByHost = {
    expr = map (name: (fires "use letters" { secrets.${name} = { }; }).expr) [
      "git.git.example.com.token"
      "git.git.example.com.pem"
    ];
    expected = [
      false
      true
    ];
  };
  testTargetsReloadAndSettingsRestart = {
    expr = [
      (lib.length (unit full).reloadTriggers)
      (unit full).environment.MCP_HOST
      (unit full).serviceConfig.Type
    ];
    expected = [
      1
      "0.0.0.0"
      "notify-reload"
    ];
  };
  testSecretsAreCredentials = {
    expr = {
      inherit ((unit full).serviceConfig) LoadCredential LoadCredentialEncrypted;
    };
    expected = {
      LoadCredential = [ "SSH_KEY:/etc/credstore/systemmanager.SSH_KEY" ];
      LoadCredentialEncrypted = [ "SYSTEMMANAGER_SHARED_SECRET:/run/secrets/${canary}" ];
    };
  };
  testNothingIsOpenButTheTailnet = {
    expr = {
      everywhere = full.networking.firewall.allowedTCPPorts ++ full.networking.firewall.allowedUDPPorts;
      interfaces = lib.mapAttrs (_: one: one.allowedTCPPorts) full.networking.firewall.interfaces;
      inherit (full.networking.firewall) enable trustedInterfaces;
      closed = (plain.networking.firewall.interfaces.tailscale0 or { allowedTCPPorts = [ ]; }).allowedTCPPorts;
    };
    expected = {
      everywhere = [ ];
      interfaces = {
        tailscale0 = [ 8080 ];
      };
      enable = true;
      trustedInterfaces = [ "lo" ];
      closed = [ ];
    };
  };
  testTheApplianceOpensNothingElse = {
    expr =
      let
        config = self.nixosConfigurations.gateway.config;
      in
      [
        config.networking.firewall.allowedTCPPorts
        config.networking.firewall.interfaces.tailscale0.allowedTCPPorts
        config.services.openssh.settings.PasswordAuthentication
        (lib.filter (user: user.password != null || user.hashedPassword != null || user.initialPassword != null) (
          lib.attrValues config.users.users
        ))
        (messages config)
      ];
    expected = [
      [ ]
      [ 22 ]
      false
      [ ]
      [ ]
    ];
  };
  testTheWayOutIsOneListInBothPlaces = {
    expr = {
      inherit ((unit full).serviceConfig) IPAddressDeny IPAddressAllow;
      chain = map (part: lib.hasInfix part full.networking.nftables.tables.systemmanager.content) [
        "meta skuid 3811 jump allowed"
        "ip daddr 192.168.1.0/24 accept"
        "ip6 daddr fd00::/8 accept"
        "counter reject"
      ];
    };
    expected = {
      IPAddressDeny = "any";
      IPAddressAllow = [
        "localhost"
        "100.64.0.0/10"
        "fd7a:115c:a1e0::/48"
        "192.168.1.0/24"
        "fd00::/8"
      ];
      chain = [
        true
        true
        true
        true
      ];
    };
  };
  testAnAuthKeyThatComesLaterJoins = {
    expr = [
      full.systemd.services.tailscaled-autoconnect.unitConfig.ConditionPathExists
      full.systemd.paths.tailscaled-autoconnect.pathConfig
      (plain.systemd.paths ? tailscaled-autoconnect)
      ((with' {
        tailscale.enable = true;
        tailscale.authKeyFile = null;
      }).systemd.paths ? tailscaled-autoconnect)
    ];
    expected = [
      "/etc/credstore/systemmanager.tailscale-auth-key"
      { PathChanged = "/etc/credstore/systemmanager.tailscale-auth-key"; }
      false
      false
    ];
  };
  testServeComesUpWithTheGateway = {
    expr = self.nixosConfigurations.gateway.config.systemd.services.systemmanager-serve.wantedBy;
    expected = [
      "multi-user.target"
      "systemmanager-mcp.service"
    ];
  };
  testTheAuditLogsFolderIsMadeAndWritable = {
    expr =
      let
        config = with' {
          audit.log = "/var/log/systemmanager/audit.jsonl";
          audit.witness = "/mnt/witness/gateway/witness.jsonl";
        };
        folders = lib.attrNames config.systemd.tmpfiles.settings.systemmanager;
        inherit (unit config) unitConfig serviceConfig;
      in
      {
        inherit folders;
        mounts = unitConfig.RequiresMountsFor;
        writable = serviceConfig.ReadWritePaths;
        executable = lib.subtractLists serviceConfig.NoExecPaths folders;
        fired = messages config;
      };
    expected = rec {
      folders = [
        "/mnt/witness/gateway"
        "/var/log/systemmanager"
      ];
      mounts = [
        "/var/log/systemmanager"
        "/mnt/witness/gateway"
      ];
      writable = mounts;
      executable = [ ];
      fired = [ ];
    };
  };
  testTheAuditLogHasAFolderOfItsOwn = fires "/var/log is not the gateway's alone" { audit.log = "/var/log/audit.jsonl"; };
  testRoot = {
    expr = lib.any (lib.hasInfix "does not run as root") (
      messages (machine {
        users.users.systemmanager.uid = lib.mkForce 0;
      })
    );
    expected = true;
  };
  testItIsNotRoot = {
    expr = [
      (unit full).serviceConfig.User
      full.users.users.systemmanager.uid
      full.users.users.systemmanager.extraGroups
    ];
    expected = [
      "systemmanager"
      3811
      [ ]
    ];
  };
  # No text of a secret is ever given to Nix; what could be one is refused.
  testAStorePathIsNoSecret = refused { secrets.X.file = "${builtins.storeDir}/${lib.concatStrings (lib.replicate 32 "a")}-secret"; };
  testAPathLiteralIsNoSecret = refused { secrets.X.file = ./module.nix; };
  # A secret's text, wherever one could be put by mistake.
  testASecretsTextIsNoToken = refused (api { auth = { type = "bearer"; token = canary; }; });
  testASecretsTextIsNoPassword = refused (api { auth = { type = "basic"; username = "u"; password = canary; }; });
  testASecretsTextIsNoHeader = refused (api { auth = { type = "header"; name = "X-Key"; value = canary; }; });
  testASecretsTextIsInNoAddress = refused (api { base_url = "https://user:${canary}@127.0.0.1"; });
  testASecretsTextIsNoPassphrase = refused {
    targets.web = lib.recursiveUpdate (ssh "127.0.0.1") { connection.passphrase = canary; };
  };
  testASecretsTextIsNoKey = refused {
    targets.web = lib.recursiveUpdate (ssh "127.0.0.1") { connection.key_path = "-----BEGIN PRIVATE KEY-----\n${canary}"; };
  };
  testASecretsTextIsNoFile = refused { secrets.X.file = canary; };
  testASecretsTextIsNoAuthKey = refused { tailscale.authKeyFile = canary; };
  testAPathLiteralIsNoAuthKey = refused { tailscale.authKeyFile = ./module.nix; };
  testSecretsAreNoSettings = {
    expr = lib.filter (name: !(fires "declare secrets.<name>" { settings.${name} = canary; }).expr) secretSettings;
    expected = [ ];
  };
  testAKeyInTheStoreIsNoKey = refused {
    targets.web = lib.recursiveUpdate (ssh "127.0.0.1") { connection.key_path = "${builtins.storeDir}/abc-key"; };
  };
  testAnUnknownExecutorIsRefused = refused { targets.x = ssh "127.0.0.1" // { executor = "telnet"; }; };
  testAnUnknownConstraintIsRefused = refused { targets.x = ssh "127.0.0.1" // { constraints.colour = 1; }; };

  # What the store would hold of a machine whose secrets are declared: their paths, and nothing else.
  testTheStoreHoldsNoSecret = {
    expr = lib.concatMap (text: lib.filter (part: lib.hasInfix canary part) (lib.splitString "\n" text)) [
      full.systemd.units."systemmanager-mcp.service".text
      full.networking.nftables.tables.systemmanager.content
      (builtins.toJSON full.services.systemmanager.rendered.targets)
      (builtins.toJSON full.services.systemmanager.rendered.policy)
      (builtins.toJSON full.services.systemmanager.rendered.environment)
    ];
    expected = [ "LoadCredentialEncrypted=SYSTEMMANAGER_SHARED_SECRET:/run/secrets/${canary}" ];
  };
  # A change of this file is a change of what the kernel allows: nix/systemmanager-mcp.service is what Debian installs and what is run for real.
  testTheUnitsText = {
    expr = builtins.filter (line: lib.isString line && builtins.match "(Environment|ExecStart|X-|Documentation).*" line == null) (
      lib.splitString "\n" plain.systemd.units."systemmanager-mcp.service".text
    );
    expected = lib.splitString "\n" (builtins.readFile ../systemmanager-mcp.service);
  };

  testUndeclaredSecret = fires "declare secrets.KEY" {
    targets.web = lib.recursiveUpdate (ssh "127.0.0.1") { connection.key_path = "\${KEY}"; };
  };
  testSecretNames = fires "use letters" { secrets."a b" = { }; };
  testNobodyCanProve = fires "nobody can prove" { auth.token = false; };
  testOidcNeedsItsIssuer = fires "set auth.oidc.issuer" { auth.oidc.enable = true; };
  testOidcClientNeedsItsSecret = fires "declare its secret" { auth.oidc.clientId = "gateway"; };
  testTailscaleIdentities = fires "tailscaled says who calls" { auth.tailscale = true; };
  testServeNeedsTailscale = fires "serve and service need" { tailscale.serve = true; };
  testServiceNeedsOneName = fires "gateways behind one name" {
    tailscale.enable = true;
    tailscale.service = true;
  };
  testOpenFirewallNeedsTailscale = fires "the tailnet's interface only" { openFirewall = true; };
  testOpenFirewallOnLoopback = fires "listens on loopback" {
    openFirewall = true;
    tailscale.enable = true;
  };
  testOpenFirewallNeedsAName = fires "set settings.SYSTEMMANAGER_BASE_URL to the URL" {
    openFirewall = true;
    tailscale.enable = true;
    settings.MCP_HOST = "0.0.0.0";
  };
  testUnreachableTargets = fires "the addresses of web are not in it" { targets.web = ssh "10.0.0.1"; };
  testReachableByNetwork = {
    expr = messages (with' {
      targets.web = ssh "10.0.0.1";
      targets.other = ssh "100.64.3.4";
      targets.named = ssh "web.example.com";
      allowedNetworks = [ "10.0.0.0/30" ];
    });
    expected = [ ];
  };
  testIdsAreNames = fires "leave id out" { targets.web = ssh "127.0.0.1" // { id = "web2"; }; };
  testDockerGroup = fires "there is no group docker" { docker.socket = "/run/docker.sock"; };
  testFirewallOff = {
    expr = lib.any (lib.hasInfix "keep networking.firewall.enable") (
      messages (machine {
        services.systemmanager.settings.MCP_HOST = "0.0.0.0";
        networking.firewall.enable = false;
      })
    );
    expected = true;
  };
  testPortOpenEverywhere = {
    expr = lib.any (lib.hasInfix "which opens it everywhere") (
      messages (machine {
        services.systemmanager.settings.MCP_HOST = "0.0.0.0";
        networking.firewall.allowedTCPPorts = [ 8080 ];
      })
    );
    expected = true;
  };

  testFleetSegments = {
    expr = map (gateway: ids (fleet gateway { })) [
      "segment-a-gateway"
      "segment-b-gateway"
    ];
    expected = [
      [
        "db-a-01"
        "logging-01"
        "monitoring-01"
        "web-a-01"
      ]
      [
        "db-b-01"
        "logging-01"
        "monitoring-01"
        "web-b-01"
      ]
    ];
  };
  testFleetIsQuiet = {
    expr = messages (fleet "segment-a-gateway" { });
    expected = [ ];
  };
  testSharedTargetsAreTheSameOnBoth = {
    expr =
      let
        of = gateway: (fleet gateway { }).services.systemmanager.rendered;
        a = of "segment-a-gateway";
        b = of "segment-b-gateway";
      in
      a.targets.targets.logging-01 == b.targets.targets.logging-01 && a.policy == b.policy;
    expected = true;
  };
  testPrimaryAndSecondaryOverlap = {
    expr = map (
      gateway:
      ids (with' {
        fleet = {
          inherit gateway;
          targets = lib.genAttrs [ "web-01" "db-01" "monitoring-01" "logging-01" ] (_: ssh "127.0.0.1");
          gateways.primary-gateway.targets = [ "web-01" "db-01" "monitoring-01" ];
          gateways.secondary-gateway.targets = [ "web-01" "db-01" "logging-01" ];
        };
      })
    ) [ "primary-gateway" "secondary-gateway" ];
    expected = [
      [ "db-01" "monitoring-01" "web-01" ]
      [ "db-01" "logging-01" "web-01" ]
    ];
  };
  testNoTargetWithoutAGateway = {
    expr = lib.any (lib.hasInfix "no gateway manages orphan") (
      messages (fleet "segment-a-gateway" { orphan = ssh "127.0.0.1"; })
    );
    expected = true;
  };
  testUnknownFleetTargets = fires "nowhere stand in no fleet.targets" {
    fleet = {
      gateway = "a";
      gateways.a.targets = [ "nowhere" ];
    };
  };
  testUnknownGateway = fires "b is none of fleet.gateways" {
    fleet = {
      gateway = "b";
      gateways.a.targets = [ ];
    };
  };
  testAJumpHostComesAlong = fires "reached through targets that this gateway does not manage" {
    fleet = {
      gateway = "a";
      targets.inner = lib.recursiveUpdate (ssh "127.0.0.1") { connection.jump = "outer"; };
      targets.outer = ssh "127.0.0.1";
      gateways.a.targets = [ "inner" ];
      gateways.b.targets = [ "outer" ];
    };
  };
  testSharedTargetsGetOnePolicy = {
    expr = map (said: lib.any (lib.hasInfix said) (
      messages (machine [
        (import ../examples/fleet.nix "segment-a-gateway")
        {
          services.systemmanager = {
            tailscale.enable = true;
            targets.logging-01.capabilities = [ "container:control" ];
            policy.grants = [
              {
                subjects = [ "eve@example.com" ];
                scopes = [ "admin" ];
              }
            ];
          };
        }
      ])
    )) [ "logging-01 are shared" "adds grants of its own" ];
    expected = [
      true
      true
    ];
  };
}
