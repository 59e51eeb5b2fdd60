# The gateway's Python packages: the wheels that requirements.lock names, by their hashes, patched for NixOS.
{
  lib,
  stdenv,
  fetchurl,
  autoPatchelfHook,
  python313,
}:
let
  system = stdenv.hostPlatform.system;
  wheels = import ./wheels.nix { inherit lib; } (builtins.readFile ../requirements.lock) system;
  # nixpkgs' mirrors of PyPI end with source/; wheels lie beside it.
  fetch =
    wheel:
    fetchurl {
      name = wheel.file;
      url = "mirror://pypi/../${wheel.python}/${lib.substring 0 1 wheel.name}/${wheel.name}/${wheel.file}";
      inherit (wheel) sha256;
    };
  sources = map (wheel: wheel // { source = fetch wheel; }) wheels;
in
stdenv.mkDerivation {
  name = "systemmanager-python";

  dontUnpack = true;
  strictDeps = true;
  nativeBuildInputs = [
    autoPatchelfHook
    python313.pkgs.pip
    python313
  ];
  buildInputs = [
    (lib.getLib stdenv.cc.cc)
    python313
  ];

  # pip reads name and tags of a wheel from its file name, which a store path does not have.
  installPhase = ''
    runHook preInstall
    mkdir wheels
    ${lib.concatMapStringsSep "\n" (wheel: "ln -s ${wheel.source} wheels/${wheel.file}") sources}
    python -m pip install --no-index --no-deps --no-cache-dir --disable-pip-version-check \
      --no-warn-script-location --prefix=$out wheels/*.whl
    rm -rf $out/bin
    runHook postInstall
  '';

  passthru = {
    inherit wheels sources;
    python = python313;
    sitePackages = python313.sitePackages;
  };
  meta.description = "The Python packages of SystemManager, as requirements.lock pins them";
}
