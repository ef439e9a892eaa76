def test_the_doctor_finds_this_machine_well(workplace):
    done = workplace.run([], "experiments.doctor")
    assert "ok    train step  losses 7.04" in done.stdout, done.stdout + done.stderr
    assert done.returncode == int("->" in done.stdout) and len(done.stdout.splitlines()) >= 6
