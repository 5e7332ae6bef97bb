# Feast as its users have it: its Python packages, in an environment of their own. Nothing runs.
# shellcheck shell=bash disable=SC2154

feast_version=0.67.0
feast_home=$cache/feast-$feast_version

feast_install() {
    if [[ -d $feast_home ]]; then return; fi
    local log=$feast_home.log work
    mkdir -p "$cache"
    note "installing feast $feast_version with pip into $feast_home"
    # Renamed when it is whole. Its scripts name the old path, its interpreter does not mind: python -m.
    work=$feast_home.part
    rm -rf "$work"
    {
        python3 -m venv --copies "$work" && "$work/bin/python" -m pip install -q "feast[redis]==$feast_version"
    } >"$log" 2>&1 </dev/null 9>&- || {
        tail -n 20 "$log" >&2
        die "Feast could not be installed: the last lines of $log are above; it needs python3 with venv (Debian package" \
            "python3-venv) and PyPI, or a mirror that pip is configured for"
    }
    mv -T "$work" "$feast_home"
    rm -f "$log"
}
