from exo.main import run

if __name__ == "__main__":
  run()
