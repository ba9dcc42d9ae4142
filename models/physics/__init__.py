"""What surrounds the method: continuous time, imperfect machines, friction."""
